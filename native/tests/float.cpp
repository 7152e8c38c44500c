// Norms, gates, rotations and float tables.

#include "check.h"
#include "tests.h"

#include <algorithm>

namespace trilobit::test {
namespace {

constexpr Float kTypes[] = {Float::f32, Float::f16, Float::bf16};
constexpr const char *kTypeNames[] = {"f32", "f16", "bf16"};

const char *name_of(Float type) { return kTypeNames[static_cast<int>(type)]; }

void norms(const Kernels &k, Check &check) {
    constexpr float kEpsilon = 1e-5f;
    Random random(2);
    for (const int n : {1, 15, 16, 100, 640, 2560, 6912}) {
        const int padded = round_up(n, kFloatPad);
        std::vector<float> x = random.floats(size(padded), -4, 4);
        std::vector<float> gain = random.floats(size(padded), 0.5f, 2);
        std::fill(x.begin() + n, x.end(), 0.0f);
        std::fill(gain.begin() + n, gain.end(), 0.0f);
        double squares = 0, absmax = 1e-5;
        for (int i = 0; i < n; ++i) squares += double{x[size(i)]} * double{x[size(i)]};
        std::vector<double> y(size(n));
        for (int i = 0; i < n; ++i) {
            y[size(i)] = double{gain[size(i)]} * double{x[size(i)]} /
                         std::sqrt(squares / n + double{kEpsilon});
            absmax = std::max(absmax, std::abs(y[size(i)]));
        }
        // One of 16 lanes adds n/16 squares; half of their error goes through the root.
        const double relative = (n / 16 + 8) * kUnit;

        check.begin(std::string(k.name) + " norm " + std::to_string(n));
        std::vector<float> out(size(padded));
        k.norm(x.data(), gain.data(), n, kEpsilon, out.data());
        for (int i = 0; i < n; ++i)
            check.close(out[size(i)], y[size(i)], relative * std::abs(y[size(i)]), i);

        check.begin(std::string(k.name) + " norm_quantise " + std::to_string(n));
        // Token 4 of five, alone in its tile or behind others
        for (const int tile : {1, 2, 3, 5}) {
            constexpr int kToken = 4, kCount = 5;
            std::vector<std::int8_t> codes(size(kCount, padded), 99);
            float scales[kCount] = {};
            std::int32_t sums[kCount] = {}, wanted_sum = 0;
            const Activations a{codes.data(), scales, sums, kCount, padded, tile};
            k.norm_quantise(x.data(), gain.data(), n, kEpsilon, a, kToken);
            const int first = kToken / tile * tile, together = std::min(tile, kCount - first);
            const auto code = [&](int i) {
                return codes[size(first, padded) +
                             size((i / 4 * together + kToken - first) * 4 + i % 4)];
            };
            // The root is in every value and in the largest: it cancels. Six roundings are left.
            const double slack = 127 * 6 * kUnit;
            for (int i = 0; i < n; ++i) {
                check.close(code(i), y[size(i)] * 127 / absmax, 0.5 + slack, i);
                wanted_sum += code(i);
            }
            for (int i = n; i < padded; ++i) check.that(code(i) == 0, "padding is zero");
            check.that(std::count(codes.begin(), codes.end(), 99) >= (kCount - 1) * padded,
                       "other tokens stay as they are");
            check.that(sums[kToken] == wanted_sum, "the sum is that of the codes");
            check.close(double{scales[kToken]}, absmax / 127, relative * absmax / 127);

            double largest = 0;
            for (int i = 0; i < n; ++i) largest = std::max(largest, std::abs(double{x[size(i)]}));
            k.norm_quantise(x.data(), nullptr, n, kEpsilon, a, kToken);
            for (int i = 0; i < n; ++i) // without a norm
                check.close(code(i), x[size(i)] * 127 / largest, 0.5 + 127 * 2 * kUnit, i);
            check.close(double{scales[kToken]}, largest / 127, 2 * kUnit * largest / 127);
        }
    }
}

double activation(Activation act, double x) {
    if (act == Activation::relu2) return x > 0 ? x * x : 0;
    if (act == Activation::silu) return x / (1 + std::exp(-x));
    const double u = std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    return x / (1 + std::exp(-2 * u)); // = x (1 + tanh(u)) / 2, which would cancel
}

void gates_and_rotations(const Kernels &k, Check &check) {
    Random random(3);
    for (const Activation act : {Activation::relu2, Activation::silu, Activation::gelu_tanh})
        for (const int n : {1, 7, 16, 100, 2000}) {
            check.begin(std::string(k.name) + " gate " + std::to_string(static_cast<int>(act)) +
                        ", " + std::to_string(n));
            std::vector<float> gate = random.floats(size(n), -2, 2), whole, parts;
            if (n == 2000) gate = random.floats(size(n), -100, 100);
            gate[0] = -1000; // of which nothing is left
            const std::vector<float> up = random.floats(size(n), -2, 2);
            whole = parts = gate;
            k.gate(act, whole.data(), up.data(), n);
            for (int i = 0; i < n; ++i) {
                const double g = gate[size(i)], wanted = activation(act, g) * up[size(i)];
                // exp is good to 2e-7, in its argument stand up to six roundings of up to 88, and
                // below exp(-87) it is no longer followed.
                const double near = (1e-6 + (g < -1 ? 88 * 6 * kUnit : 0)) * std::abs(wanted);
                check.close(whole[size(i)], wanted, near + 1e-33, i);
            }
            // Wherever a part begins and ends: the same bits.
            for (int begin = 0, length = 1; begin < n; begin += length++)
                k.gate(act, parts.data() + begin, up.data() + begin, std::min(length, n - begin));
            check.same(parts.data(), whole.data(), whole.size());
        }
    for (const int half : {1, 5, 32, 64}) {
        check.begin(std::string(k.name) + " rope " + std::to_string(half));
        const std::vector<float> x = random.floats(size(2, half), -3, 3);
        std::vector<float> cos(size(half)), sin(size(half)), out(x.size()), wanted(x.size());
        for (int i = 0; i < half; ++i) {
            const float angle = random.uniform(0, 6);
            const float c = cos[size(i)] = std::cos(angle), s = sin[size(i)] = std::sin(angle);
            const float a = x[size(i)], b = x[size(i + half)];
            wanted[size(i)] = a * c - b * s;
            wanted[size(i + half)] = b * c + a * s;
        }
        k.rope(x.data(), cos.data(), sin.data(), half, out.data());
        check.same(out.data(), wanted.data(), wanted.size());
    }
}

// ---- float tables -----------------------------------------------------------------------------

// A matrix of random finite numbers of one type, sixteen bits or thirty-two.
struct Table {
    std::vector<float> wide;
    std::vector<std::uint16_t> narrow;
    Dense dense;

    Table(Random &random, Float type, int rows, int columns) {
        wide = random.floats(size(rows, columns), -2, 2);
        for (const float x : wide) {
            const std::uint32_t top = std::bit_cast<std::uint32_t>(x) >> 16;
            // any sign and mantissa, exponents from the subnormal numbers to 2^2
            const int half = (random.between(0, 0xffff) & 0x83ff) | random.between(0, 17) << 10;
            narrow.push_back(static_cast<std::uint16_t>(type == Float::bf16 ? top : size(half)));
        }
        const void *data = narrow.data();
        if (type == Float::f32) data = wide.data();
        dense = {data, type, rows, columns};
    }
};

void embed(const Kernels &k, Check &check) {
    constexpr int kTableRows = 3;
    Random random(4);
    for (const Float type : kTypes)
        for (const int columns : {1, 8, 16, 17, 60, 100}) {
            check.begin(std::string(k.name) + " embed " + name_of(type) + " " +
                        std::to_string(columns));
            const Table table(random, type, kTableRows, columns);
            for (int row = 0; row < kTableRows; ++row) {
                std::vector<float> out(size(round_up(columns, kFloatPad)), 99), wanted(out.size());
                for (int i = 0; i < columns; ++i)
                    wanted[size(i)] =
                        static_cast<float>(element(table.dense, size(row, columns) + size(i)));
                k.embed(table.dense, row, out.data());
                check.same(out.data(), wanted.data(), wanted.size());
            }
        }
}

void dense(const Kernels &k, Check &check) {
    constexpr int kShapes[][2] = {{1, 1}, {3, 17}, {37, 60}, {66, 100}, {5, 2560}};
    Random random(5);
    for (const Float type : kTypes)
        for (const auto [rows, columns] : kShapes) {
            const Table table(random, type, rows, columns);
            for (const int tokens : {1, 2, 3, 4, 5, 8}) {
                check.begin(std::string(k.name) + " dense " + name_of(type) + " " +
                            shape_of(rows, columns) + ", " + std::to_string(tokens) + " tokens");
                const int stride = round_up(columns, kFloatPad);
                std::vector<float> x = random.floats(size(tokens, stride), -1, 1);
                std::vector<float> out(size(tokens, rows)), alone(out.size());
                for (int t = 0; t < tokens; ++t)
                    std::fill_n(x.begin() + t * stride + columns, stride - columns, 0.0f);
                k.dense(table.dense, 0, rows, x.data(), stride, tokens, out.data(), rows);
                for (int t = 0; t < tokens; ++t)
                    for (int r = 0; r < rows; ++r) {
                        double sum = 0, magnitude = 0;
                        for (int i = 0; i < columns; ++i) {
                            const double product =
                                element(table.dense, size(r, columns) + size(i)) *
                                double{x[size(t, stride) + size(i)]};
                            sum += product;
                            magnitude += std::abs(product);
                        }
                        // One of 16 lanes adds columns/16 products; scalar code rounds twice.
                        check.close(out[size(t, rows) + size(r)], sum,
                                    (2 * (columns / 16) + 8) * kUnit * magnitude, r);
                        k.dense(table.dense, r, r + 1, x.data() + t * stride, stride, 1,
                                alone.data() + t * rows, rows);
                    }
                check.same(out.data(), alone.data(), alone.size());
            }
        }
}

} // namespace

void test_float(const Kernels &k, Check &check) {
    norms(k, check);
    gates_and_rotations(k, check);
    embed(k, check);
    dense(k, check);
}

} // namespace trilobit::test
