// Rows behind closed gates and columns of zeros left out: the bits of a pass over all of them.

#include "check.h"
#include "tests.h"

#include "../memory.h"
#include "tokens.h"

#include <limits>

namespace trilobit::test {
namespace {

constexpr Layout kLayouts[] = {Layout::two_bit, Layout::base3};
constexpr int kShapes[][2] = {{1, 1},    {5, 100},   {17, 130}, {150, 257},
                              {700, 96}, {33, 2561}, {2, 10500}};
constexpr int kCounts[] = {1, 2, 7, 41};

// Which of n numbers are there.
const struct {
    const char *name;
    bool (*there)(int i, int n, Random &random);
} kShares[] = {
    {"none", [](int, int, Random &) { return false; }},
    {"the first", [](int i, int, Random &) { return i == 0; }},
    {"the last", [](int i, int n, Random &) { return i == n - 1; }},
    {"all", [](int, int, Random &) { return true; }},
    {"a tenth", [](int, int, Random &random) { return random.between(0, 9) == 0; }},
    {"half", [](int, int, Random &random) { return random.between(0, 1) == 0; }},
};

std::string name_of(const Kernels &k, const char *what, Layout layout, int rows, int columns,
                    int count, const char *share) {
    return std::string(k.name) + " " + what +
           (layout == Layout::two_bit ? " 2-bit " : " 1.6-bit ") + shape_of(rows, columns) + ", " +
           std::to_string(count) + " tokens, " + share;
}

struct Matrix {
    std::vector<std::uint8_t> grouped, alone; // 4 bytes of alignment, as a file promises
    std::vector<float> scales;
    Ternary all, some; // the same in groups, and in rows or columns

    Matrix(int rows, int columns, Layout layout, Order order, int scale_step, Random &random) {
        std::vector<std::int8_t> codes(size(rows, columns));
        for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random.between(-1, 1));
        scales = random.floats(size(rows), 0.1f, 1);
        const auto stored = [&](std::vector<std::uint8_t> &packed, Order as) {
            packed = pack(codes, rows, columns, layout, as);
            packed.insert(packed.begin(), 4, 0);
            return Ternary{packed.data() + 4, scales.data(), scale_step, rows,
                           columns,           layout,        {},         as};
        };
        all = stored(grouped, Order::groups);
        some = stored(alone, order);
    }
};

void gated_rows(const Kernels &k, Check &check) {
    Random random(5);
    Array<unsigned char> scratch(kScratchBytes);
    for (const Layout layout : kLayouts)
        for (const auto [rows, columns] : kShapes)
            for (const int count : kCounts) {
                const Matrix m(rows, columns, layout, Order::rows, count % 2, random);
                Tokens x(k, count, columns, [&] { return random.between(-128, 127); });
                const int stride = round_up(rows, kRows);
                std::vector<float> up(size(count, stride));
                k.linear(m.all, x.view(), 0, m.all.groups(), up.data(), stride, false,
                         scratch.data());
                for (const auto &share : kShares) {
                    check.begin(name_of(k, "gated_rows", layout, rows, columns, count, share.name));
                    std::vector<float> gate = random.floats(size(count, stride), -9, 0);
                    for (int t = 0; t < count; ++t)
                        for (int r = 0; r < rows; ++r)
                            if (share.there(r, rows, random))
                                gate[size(t, stride) + size(r)] = random.uniform(0.01f, 9);
                    if (rows > 2) gate[1] = std::numeric_limits<float>::quiet_NaN();
                    std::vector<float> wanted = gate;
                    std::vector<std::int8_t> spread(size(m.some.line_codes()));
                    // Some of the rows: the others must stay as they are.
                    const int begin = rows / 5, end = rows - rows / 7;
                    for (int t = 0; t < count; ++t) {
                        k.gate(Activation::relu2, wanted.data() + size(t, stride) + begin,
                               up.data() + size(t, stride) + begin, end - begin);
                        k.spread(m.some, x.view(), t, spread.data());
                        k.gated_rows(m.some, x.view(), t, spread.data(), begin, end,
                                     gate.data() + size(t, stride), scratch.data());
                    }
                    check.same(gate.data(), wanted.data(), wanted.size());
                }
            }
}

void columns(const Kernels &k, Check &check) {
    constexpr int kParts = 3;
    Random random(6);
    Array<unsigned char> scratch(kScratchBytes);
    for (const Layout layout : kLayouts)
        for (const auto [rows, columns] : kShapes)
            for (const int count : kCounts)
                for (const auto &share : kShares) {
                    check.begin(
                        name_of(k, "add_columns", layout, rows, columns, count, share.name));
                    const Matrix m(rows, columns, layout, Order::columns, count % 2, random);
                    int i = 0;
                    Tokens x(k, count, columns, [&, columns = columns] {
                        return share.there(i++ % columns, columns, random)
                                   ? random.between(-128, 127)
                                   : 0;
                    });
                    const std::vector<float> before = random.floats(size(count, rows), -9, 9);
                    std::vector<std::int32_t> sums(size(kParts, m.some.line_codes()));
                    for (const bool accumulate : {false, true}) {
                        std::vector<float> found = before, wanted = before;
                        k.linear(m.all, x.view(), 0, m.all.groups(), wanted.data(), rows,
                                 accumulate, scratch.data());
                        for (int t = 0; t < count; ++t) {
                            for (int part = 0; part < kParts; ++part)
                                k.add_columns(m.some, x.view(), t, columns * part / kParts,
                                              columns * (part + 1) / kParts,
                                              sums.data() + size(part, m.some.line_codes()),
                                              scratch.data());
                            k.settle(m.some, x.view(), t, sums.data(), m.some.line_codes(), kParts,
                                     0, m.some.groups(), found.data(), rows, accumulate);
                        }
                        check.same(found.data(), wanted.data(), wanted.size());
                        check.that(std::count(sums.begin(), sums.end(), 0) ==
                                       static_cast<std::ptrdiff_t>(sums.size()),
                                   "sums are cleared for the next");
                    }
                }
}

// The largest sums: int16 lanes must be widened in time, and lists end at 8192.
void extremes(const Kernels &k, Check &check) {
    Array<unsigned char> scratch(kScratchBytes);
    for (const Layout layout : kLayouts)
        for (const int n : {2560, 6912, 8192, 8193, 20000})
            for (const int weight : {-1, 1})
                for (const int activation : {-128, 127}) {
                    check.begin(std::string(k.name) + " of " + std::to_string(n) + " × " +
                                std::to_string(weight) + " × " + std::to_string(activation));
                    const std::vector<std::int8_t> codes(size(2, n),
                                                         static_cast<std::int8_t>(weight));
                    const float one = 1, wanted = static_cast<float>(n * weight * activation);
                    Tokens x(k, 1, n, [&] { return activation; });
                    x.scales[0] = 1;
                    const auto rows = pack(codes, 2, n, layout, Order::rows);
                    const Ternary up{rows.data(), &one, 0, 2, n, layout, {}, Order::rows};
                    std::vector<std::int8_t> spread(size(up.line_codes()));
                    k.spread(up, x.view(), 0, spread.data());
                    float gate[2] = {1, 1};
                    k.gated_rows(up, x.view(), 0, spread.data(), 0, 2, gate, scratch.data());
                    check.that(gate[0] == wanted && gate[1] == wanted, "the sum of a row");
                    const auto columns = pack(codes, 2, n, layout, Order::columns);
                    const Ternary down{columns.data(), &one, 0, 2, n, layout, {}, Order::columns};
                    std::vector<std::int32_t> sums(size(down.line_codes()));
                    k.add_columns(down, x.view(), 0, 0, n, sums.data(), scratch.data());
                    float out[2];
                    k.settle(down, x.view(), 0, sums.data(), 0, 1, 0, 1, out, 2, false);
                    check.that(out[0] == wanted && out[1] == wanted, "the sum over columns");
                }
}

} // namespace

void test_sparse(const Kernels &k, Check &check) {
    gated_rows(k, check);
    columns(k, check);
    extremes(k, check);
}

} // namespace trilobit::test
