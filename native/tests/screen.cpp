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

void screen(const Kernels &k, Check &check) {
    Random random(9);
    for (const auto [rows, columns] : {std::array{1, 64}, {6, 128}, {50, 320}, {7, 2560}}) {
        const int blocks = columns / kScreenColumns;
        const std::vector<float> scales = random.floats(size(rows), 0.1f, 1);
        const std::vector<float> residuals(scales.size());
        for (const bool extreme : {false, true}) {
            std::vector<std::uint8_t> codes(size(round_up(rows, kRows), columns) / 2);
            for (std::uint8_t &byte : codes)
                byte = static_cast<std::uint8_t>(extreme ? 0xff : random.between(0, 255));
            const Screen s{codes.data(), scales.data(), residuals.data(), rows, columns, 64};
            for (const int count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
                check.begin(std::string(k.name) + " screen " + shape_of(rows, columns) + ", " +
                            std::to_string(count) + (extreme ? " extreme" : "") + " tokens");
                std::vector<std::int8_t> x(size(count, columns), -128);
                std::vector<std::int32_t> sums(size(count), -128 * columns);
                std::vector<float> x_scales = random.floats(size(count), 0.1f, 1);
                for (int t = 0; t < count && !extreme; ++t) {
                    sums[size(t)] = 0;
                    for (int i = 0; i < columns; ++i) {
                        const int code = random.between(-128, 127);
                        x[size(t, columns) + size(i)] = static_cast<std::int8_t>(code);
                        sums[size(t)] += code;
                    }
                }
                std::vector<float> out(size(count, rows)), wanted(out.size());
                for (int t = 0; t < count; ++t)
                    for (int r = 0; r < rows; ++r) {
                        std::int32_t dot = 0;
                        for (int i = 0; i < columns; ++i) {
                            const int block = r / kRows * blocks + i / kScreenColumns;
                            const std::uint8_t byte =
                                codes[size(block, kBlockBytes) + size(r % kRows, 4) + size(i % 4)];
                            const int code = i % kScreenColumns < 4 ? byte & 15 : byte >> 4;
                            dot += (code - 8) * x[size(t, columns) + size(i)];
                        }
                        wanted[size(t, rows) + size(r)] =
                            static_cast<float>(dot) * (scales[size(r)] * x_scales[size(t)]);
                    }
                const int tile = std::min(count, kScreenTokens);
                std::vector<std::int8_t> tiled(x.size());
                const Activations activations{tiled.data(), x_scales.data(), sums.data(),
                                              count,        columns,         tile};
                for (int t = 0; t < count; ++t) {
                    const int first = t / tile * tile, together = std::min(tile, count - first);
                    for (int i = 0; i < columns; ++i)
                        tiled[size(first, columns) + size((i / 4 * together + t - first) * 4 +
                                                          i % 4)] = x[size(t, columns) + size(i)];
                }
                k.screen(s, activations, 0, (rows + kRows - 1) / kRows, out.data(), rows);
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
        const Screen screen{nullptr, scales.data(), residuals.data(), n, 64, 64};
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
            rows.resize(size(k.reaching(screen, reach, scores.data(), begin, n, rows.data())));
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
    screen(k, check);
    scan(k, check);
    gumbel(k, check);
}

} // namespace trilobit::test
