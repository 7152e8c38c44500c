// The machine's limits, and the check of a file's codes.

#include "check.h"
#include "tests.h"

#include "../limits.h"

#include <algorithm>

namespace trilobit::test {
namespace {

void limits(const Kernels &k, Check &check) {
    check.begin(std::string(k.name) + " limits");
    const std::vector<float> ones(1024, 1.0f), zeros(1024);
    check.that(k.read(ones.data(), 4096) == 1, "ones are read");
    check.that(k.read(zeros.data(), 4096) == 0, "zeros are read");
    std::int32_t sink[kRows] = {};
    const int products = k.multiply(1, sink);
    check.that(products > 0 && products % kRows == 0, "products are counted");
    check.that(sink[0] != 0 &&
                   std::all_of(sink, sink + kRows, [&](std::int32_t s) { return s == sink[0]; }),
               "rows of equal codes have equal sums");
}

void packed_codes(Check &check) {
    check.begin("codes_are_ternary");
    for (const int n : {1, 7, 8, 70'000}) {
        std::vector<std::uint8_t> packed(size(n), 0x86);
        check.that(codes_are_ternary(packed.data(), packed.size(), 3), "0, 1 and 2 are codes");
        for (const int three : {0x03, 0x0c, 0x30, 0xc0}) {
            std::uint8_t &byte = packed[size(n / 2)];
            const std::uint8_t sound = byte;
            byte = static_cast<std::uint8_t>(byte | three);
            check.that(!codes_are_ternary(packed.data(), packed.size(), 3), "3 is not");
            byte = sound;
        }
    }
}

} // namespace

void test_limits(const Kernels &k, Check &check) {
    limits(k, check);
    packed_codes(check);
}

} // namespace trilobit::test
