// The check of a file's codes, and matrices in another layout.

#include "check.h"
#include "tests.h"

#include "../packing.h"

namespace trilobit::test {
namespace {

void two_bit_codes(Check &check) {
    check.begin("codes_are_ternary in two bits");
    for (const int n : {1, 7, 8, 70'000}) {
        std::vector<std::uint8_t> packed(size(n), 0x86);
        check.that(codes_are_ternary(packed.data(), packed.size(), Layout::two_bit, 3),
                   "0, 1 and 2 are codes");
        for (const int three : {0x03, 0x0c, 0x30, 0xc0}) {
            std::uint8_t &byte = packed[size(n / 2)];
            const std::uint8_t sound = byte;
            byte = static_cast<std::uint8_t>(byte | three);
            check.that(!codes_are_ternary(packed.data(), packed.size(), Layout::two_bit, 3),
                       "3 is not");
            byte = sound;
        }
    }
}

void base3_codes(Check &check) {
    check.begin("codes_are_ternary in base 3");
    std::vector<bool> numbers(256);
    for (int u = 0; u < 243; ++u)
        numbers[size(128 + static_cast<int>(std::nearbyint((u - 121) * 256 / 243.0)))] = true;
    for (const int n : {1, 7, 8, 70'000})
        for (int byte = 0; byte < 256; ++byte) {
            std::vector<std::uint8_t> packed(size(n), 0x80);
            packed[size(n / 2)] = static_cast<std::uint8_t>(byte);
            check.that(codes_are_ternary(packed.data(), packed.size(), Layout::base3, 3) ==
                           numbers[size(byte)],
                       "the bytes of the 243 numbers are codes, no others");
        }
}

constexpr std::pair<Layout, Order> kForms[] = {
    {Layout::two_bit, Order::groups},  {Layout::base3, Order::groups},
    {Layout::two_bit, Order::rows},    {Layout::base3, Order::rows},
    {Layout::two_bit, Order::columns}, {Layout::base3, Order::columns}};

void other_layouts(Check &check) {
    Random random(3);
    for (const auto &[rows, columns] :
         {std::pair{1, 1}, {16, 16}, {17, 20}, {33, 79}, {40, 81}, {5, 2561}, {650, 33}}) {
        check.begin("repack " + shape_of(rows, columns));
        std::vector<std::int8_t> codes(size(rows, columns));
        for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random.between(-1, 1));
        for (const auto &[old_layout, old_order] : kForms)
            for (const auto &[new_layout, new_order] : kForms) {
                const auto packed = pack(codes, rows, columns, old_layout, old_order);
                const auto wanted = pack(codes, rows, columns, new_layout, new_order);
                std::vector<std::uint8_t> found(wanted.size());
                const Ternary from{packed.data(), nullptr,    0,  rows,
                                   columns,       old_layout, {}, old_order};
                const Ternary to{nullptr, nullptr, 0, rows, columns, new_layout, {}, new_order};
                repack(from, to, found.data(), 2);
                check.that(found == wanted, "the same weights");
            }
    }
}

} // namespace

void test_packing(Check &check) {
    two_bit_codes(check);
    base3_codes(check);
    other_layouts(check);
}

} // namespace trilobit::test
