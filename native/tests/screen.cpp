// The screen of the head, and the noise of sampling.

#include "check.h"
#include "tests.h"

#include "../isa.h"

#include <array>
#include <bit>
#include <limits>

namespace trilobit::test {
namespace {

void rotate(const Kernels &k, Check &check) {
    Random random(8);
    for (const auto [n, padded, block] :
         {std::array{60, 64, 64}, {100, 128, 128}, {2560, 2560, 512}}) {
        check.begin(std::string(k.name) + " rotate " + std::to_string(n));
        const std::vector<float> x = random.floats(size(n), -2, 2);
        const std::vector<float> signs = random.floats(size(padded), -1, 1);
        std::vector<float> out(size(padded));
        k.rotate(x.data(), signs.data(), n, padded, block, out.data());
        for (int i = 0; i < padded; ++i) {
            double sum = 0, magnitude = 0;
            for (int j = i / block * block; j < i / block * block + block && j < n; ++j) {
                const double one = double{x[size(j)]} * double{signs[size(j)]};
                // an element of Sylvester's Hadamard matrix
                sum += std::popcount(static_cast<unsigned>(i & j % block)) % 2 ? -one : one;
                magnitude += std::abs(one);
            }
            // the product and log2(512) additions
            check.close(out[size(i)], sum, 10 * kUnit * magnitude, i);
        }
    }
}

// Any bytes as both planes: all codes of all rows, whatever the activations.
void planes(const Kernels &k, Check &check) {
    Random random(9);
    for (const auto [rows, columns] : {std::array{1, 64}, {6, 128}, {50, 320}, {37, 2560}}) {
        const std::vector<float> scales = random.floats(size(rows), 0.1f, 1);
        for (const bool extreme : {false, true}) {
            Ternary coarse{nullptr, scales.data(), 1, rows, columns};
            Ternary fine = coarse;
            fine.order = Order::rows;
            std::vector<std::uint8_t> packed(std::max(coarse.bytes(), fine.bytes()));
            for (std::uint8_t &byte : packed)
                byte = static_cast<std::uint8_t>(extreme ? 0xff : random.between(0, 255));
            coarse.packed = fine.packed = packed.data();
            const auto code = [&](const Ternary &w, int row, int column) {
                const int block = column / w.block_columns(), at = column % 4;
                const std::uint8_t byte =
                    w.order == Order::rows
                        ? w.line(row)[block * 4 + at]
                        : packed[size(row / kRows * w.blocks() + block, kBlockBytes) +
                                 size(row % kRows, 4) + size(at)];
                return byte >> 2 * (column % w.block_columns() / 4) & 3;
            };
            for (const int count : {1, 2, 3, 4, 5, 7, 8, 12, 13, 41}) {
                check.begin(std::string(k.name) + " planes " + shape_of(rows, columns) + ", " +
                            std::to_string(count) + (extreme ? " extreme" : "") + " tokens");
                const int tile = k.tile_tokens(count);
                std::vector<std::int8_t> codes(size(count, columns));
                std::vector<std::int32_t> sums(codes.size() / size(columns));
                std::vector<float> x_scales = random.floats(size(count), 0.1f, 1);
                const Activations x{codes.data(), x_scales.data(), sums.data(),
                                    count,        columns,         tile};
                const auto at = [&](int t, int i) -> std::int8_t & {
                    return x.first(t)[i / 4 * 4 * x.tokens_beside(t) + i % 4];
                };
                for (int t = 0; t < count; ++t) {
                    for (int i = 0; i < columns; ++i) {
                        at(t, i) = static_cast<std::int8_t>(extreme ? t % 2 ? 127 : -128
                                                                    : random.between(-128, 127));
                        sums[size(t)] += at(t, i);
                    }
                    sums[size(t)] = (3 * sums[size(t)]) >> 1;
                }
                const auto score = [&](const Ternary &w, int t, int row, float factor) {
                    std::int32_t dot = 0;
                    for (int i = 0; i < columns; ++i) dot += code(w, row, i) * at(t, i);
                    return static_cast<float>(dot - sums[size(t)]) *
                           (scales[size(row)] * (x_scales[size(t)] * factor));
                };
                std::vector<float> out(size(count, rows)), wanted(out.size());
                for (int t = 0; t < count; ++t)
                    for (int r = 0; r < rows; ++r)
                        wanted[size(t, rows) + size(r)] = score(coarse, t, r, 1);
                k.coarse(coarse, x, 0, coarse.groups(), out.data(), rows);
                check.same(out.data(), wanted.data(), wanted.size());

                std::vector<std::int8_t> spread(size(fine.line_codes()));
                std::vector<std::int32_t> some; // a line beyond those that are met together
                for (int r = 0; r < rows; ++r)
                    if (r < 5 || random.between(0, 2) == 0) some.push_back(r);
                for (int t = 0; t < count; ++t) {
                    k.spread(fine, x, t, spread.data());
                    for (const std::int32_t r : some)
                        wanted[size(t, rows) + size(r)] += score(fine, t, r, 0.75f);
                    k.fine(fine, x, t, spread.data(), some.data(), static_cast<int>(some.size()),
                           0.75f, out.data() + size(t, rows));
                }
                check.same(out.data(), wanted.data(), wanted.size());
            }
        }
    }
}

// The best score, and the rows that may reach a bound, at any place of a vector or of what is
// looked at together.
void scan(const Kernels &k, Check &check) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Random random(10);
    for (const int n : {1, 7, 63, 64, 65, 200, 1000}) {
        check.begin(std::string(k.name) + " scan of " + std::to_string(n));
        std::vector<float> scores = random.floats(size(n), -4, 4);
        const std::vector<float> scales = random.floats(size(n), 0, 1),
                                 residuals = random.floats(size(n), 0, 1);
        const Plane plane{{nullptr, scales.data(), 1, n, 64}, residuals.data()};
        for (const int where : {0, n / 3, n - 1}) {
            std::vector<float> one = scores;
            one[size(where)] = 5;
            one.back() = 5; // the first of equals counts
            check.that(k.largest(one.data(), n) == where, "the largest is found");
            one.assign(size(n), -kInfinity);
            check.that(k.largest(one.data(), n) == -1, "nothing is larger than -inf");
            one[size(where)] = -1e30f;
            check.that(k.largest(one.data(), n) == where, "the largest is found");
        }
        scores[size(n / 2)] = -kInfinity;
        scores[size(n / 5)] = kInfinity;
        for (const float bound : {-kInfinity, -1.0f, 4.0f, 5.5f, kInfinity}) {
            const Reach reach{0.5f, 0.25f, 2.0f, bound};
            const int begin = n / 4 / kRows * kRows;
            std::vector<std::int32_t> rows(size(n)), wanted;
            for (int i = begin; i < n; ++i) {
                const float margin = 0.5f * residuals[size(i)] + 0.25f * scales[size(i)];
                if (scores[size(i)] + margin * 2.0f >= bound) wanted.push_back(i);
            }
            rows.resize(size(k.reaching(plane, reach, scores.data(), begin, n, rows.data())));
            check.that(rows == wanted, "the rows that reach the bound");
        }
    }
}

// The noise decides which token is drawn: the same bits with every instruction set.
void gumbel(const Kernels &k, Check &check) {
    constexpr int kCount = 5000, kFirst = 1234;
    constexpr std::uint32_t kKey = 0xdeadbeef;
    check.begin(std::string(k.name) + " gumbel");
    std::vector<float> noise(kCount), scalar(kCount);
    k.gumbel(kKey, kFirst, kCount, noise.data());
    available_kernels().front()->gumbel(kKey, kFirst, kCount, scalar.data());
    check.same(noise.data(), scalar.data(), noise.size());
    for (int i = 0; i < kCount; i += 50) {
        float one;
        k.gumbel(kKey, kFirst + i, 1, &one);
        check.same(&one, &noise[size(i)], 1);
    }
    double mean = 0, spread = 0;
    for (const float x : noise) mean += double{x} / kCount;
    for (const float x : noise) spread += (double{x} - mean) * (double{x} - mean) / kCount;
    // Euler's constant and π²/6, within four deviations of the means of 5000 draws
    check.close(mean, 0.57722, 4 * 1.28255 / std::sqrt(kCount));
    check.close(spread, 1.64493, 4 * 1.64493 * std::sqrt(4.4 / kCount));
}

} // namespace

void test_screen(const Kernels &k, Check &check) {
    rotate(k, check);
    planes(k, check);
    scan(k, check);
    gumbel(k, check);
}

} // namespace trilobit::test
