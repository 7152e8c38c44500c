// Ternary matrix times int8 activations, to the bit.

#include "check.h"
#include "tests.h"

#include "../memory.h"
#include "tokens.h"

#include <algorithm>

namespace trilobit::test {
namespace {

std::string layout_of(Layout layout) { return layout == Layout::two_bit ? "2-bit " : "1.6-bit "; }

std::string order_of(Order order) {
    return order == Order::groups ? "" : order == Order::rows ? "in rows " : "in columns ";
}

void linear(const Kernels &k, Layout layout, Order order, Check &check) {
    constexpr int kShapes[][2] = {{1, 1},     {3, 31},   {5, 100},  {16, 16},  {17, 130},
                                  {150, 257}, {7, 2561}, {200, 96}, {40, 2560}};
    // around the tile sizes, the last that is streamed, beyond a panel
    constexpr int kCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 25, 41, 257};
    Random random(1);
    Array<unsigned char> scratch(kScratchBytes);
    for (const auto [rows, columns] : kShapes) {
        std::vector<std::int8_t> codes(size(rows, columns));
        for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random.between(-1, 1));
        // A file promises 4 bytes of alignment, no more.
        std::vector<std::uint8_t> packed = pack(codes, rows, columns, layout, order);
        packed.insert(packed.begin(), 4, 0);
        const std::vector<float> scales = random.floats(size(rows), 0.1f, 1);
        for (const int count : kCounts) {
            const int step = count % 2; // a scale for the matrix, or for every row
            const Ternary w{packed.data() + 4, scales.data(), step, rows,
                            columns,           layout,        {},   order};
            check.begin(std::string(k.name) + " linear " + order_of(order) + layout_of(layout) +
                        shape_of(rows, columns) + ", " + std::to_string(count) + " tokens");
            Tokens x(k, count, columns, [&] { return random.between(-128, 127); });
            const int stride = rows + 3;
            const std::vector<float> before = random.floats(size(count, stride), -9, 9);
            std::vector<float> written = before, added = before, wanted = before, sums = before;
            // Some of the groups: the other rows must stay as they are.
            const int begin = w.groups() / 4, end = (3 * w.groups() + 3) / 4;
            for (int t = 0; t < count; ++t)
                for (int r = begin * kRows; r < std::min(end * kRows, rows); ++r) {
                    std::int32_t dot = 0;
                    for (int i = 0; i < columns; ++i)
                        dot +=
                            codes[size(r, columns) + size(i)] * x.codes[size(t, columns) + size(i)];
                    const float y =
                        static_cast<float>(dot) * (x.scales[size(t)] * scales[size(r, step)]);
                    wanted[size(t, stride) + size(r)] = y;
                    sums[size(t, stride) + size(r)] += y;
                }
            k.linear(w, x.view(), begin, end, written.data(), stride, false, scratch.data());
            check.same(written.data(), wanted.data(), wanted.size());
            k.linear(w, x.view(), begin, end, added.data(), stride, true, scratch.data());
            check.same(added.data(), sums.data(), sums.size());
        }
    }
}

// The largest sums: int16 lanes must be widened in time, to 13824 columns, and int32 lanes of
// fractions to 45568.
void linear_extremes(const Kernels &k, Layout layout, Check &check) {
    constexpr int kRowCount = 4;
    Array<unsigned char> scratch(kScratchBytes);
    for (const int columns : {128, 2048, 2560, 6912, 8640, 13824, 45568})
        for (const int weight : {-1, 1}) {
            const std::vector<std::int8_t> codes(size(kRowCount, columns),
                                                 static_cast<std::int8_t>(weight));
            const std::vector<std::uint8_t> packed = pack(codes, kRowCount, columns, layout);
            const float one = 1;
            const Ternary w{packed.data(), &one, 0, kRowCount, columns, layout};
            for (const int activation : {-128, -127, 127})
                for (const int count : {1, 2, 4, 16}) {
                    check.begin(std::string(k.name) + " linear " + layout_of(layout) + " of " +
                                std::to_string(columns) + " × " + std::to_string(weight) + " × " +
                                std::to_string(activation) + ", " + std::to_string(count) +
                                " tokens");
                    Tokens x(k, count, columns, [&] { return activation; });
                    std::fill(x.scales.begin(), x.scales.end(), 1.0f);
                    std::vector<float> out(size(count, kRowCount));
                    const std::vector<float> wanted(
                        out.size(), static_cast<float>(columns * weight * activation));
                    k.linear(w, x.view(), 0, 1, out.data(), kRowCount, false, scratch.data());
                    check.same(out.data(), wanted.data(), wanted.size());
                }
        }
}

} // namespace

void test_ternary(const Kernels &k, Check &check) {
    for (const Layout layout : {Layout::two_bit, Layout::base3}) {
        for (const Order order : {Order::groups, Order::rows, Order::columns})
            linear(k, layout, order, check);
        linear_extremes(k, layout, check);
    }
}

} // namespace trilobit::test
