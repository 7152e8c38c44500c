#include "limits.h"

#include "memory.h"
#include "pool.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <vector>

namespace trilobit {
namespace {

template <typename F> std::vector<double> seconds_of(int repeats, F &&f) {
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f();
        seconds.push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
}

template <typename F> double median_seconds(int repeats, F &&f) {
    std::vector<double> seconds = seconds_of(repeats, f);
    std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
    return seconds[static_cast<std::size_t>(repeats / 2)];
}

// Codes of tokens, as kernels want them, of which a share is not zero.
struct Tokens {
    Array<std::int8_t> codes;
    Array<float> scales;
    Array<std::int32_t> sums;
    Activations activations;

    Tokens(int tokens, int columns, int tile, double share = 1)
        : codes(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(columns)),
          scales(static_cast<std::size_t>(tokens)), sums(static_cast<std::size_t>(tokens)),
          activations{codes.data(), scales.data(), sums.data(), tokens, columns, tile} {
        std::mt19937 random(1);
        std::bernoulli_distribution there(share);
        for (std::size_t i = 0; i < codes.size(); ++i) codes.data()[i] = there(random);
    }
};

// Seconds of f(pool, weights), each time with other weights: of so many copies of `bytes` bytes
// that no cache holds them. What must be warm is warm: there is a pass before the first.
template <typename F>
std::vector<double> streamed_seconds(std::size_t bytes, int threads, int repeats, F &&f) {
    constexpr std::size_t kBeyondCaches = std::size_t{256} << 20;
    const std::size_t copies = kBeyondCaches / bytes + 1;
    Array<unsigned char> weights(copies * bytes);
    std::memset(weights.data(), 0x55, copies * bytes); // a page never written is not read
    Pool pool(threads);
    const Pool::Step step(pool);
    const auto pass = [&] {
        for (std::size_t i = 0; i < copies; ++i) f(pool, weights.data() + i * bytes);
    };
    pass();
    std::vector<double> seconds = seconds_of(repeats, pass);
    for (double &s : seconds) s /= static_cast<double>(copies);
    return seconds;
}

} // namespace

double dram_read_gb_per_s(const Kernels &kernels, int threads, int repeats) {
    // As much as a 2B model's ternary weights, and far beyond any cache.
    constexpr std::size_t kBytes = std::size_t{512} << 20;
    Array<unsigned char> data(kBytes);
    std::memset(data.data(), 1, kBytes); // a page never written is not read from memory
    std::vector<std::uint64_t> sinks(static_cast<std::size_t>(threads));
    Pool pool(threads);
    const Pool::Step step(pool);
    const double seconds = median_seconds(repeats, [&] {
        pool.split(
            static_cast<int>(kBytes / 4096), Pool::kLong, [&](int begin, int end, int thread) {
                sinks[static_cast<std::size_t>(thread)] +=
                    kernels.read(data.data() + std::size_t{4096} * static_cast<std::size_t>(begin),
                                 std::size_t{4096} * static_cast<std::size_t>(end - begin));
            });
    });
    return static_cast<double>(kBytes) / seconds * 1e-9;
}

double int8_gmac_per_s(const Kernels &kernels, int threads, int repeats) {
    constexpr int kRounds = 50'000;
    const int pieces = 8 * threads;
    std::vector<int> macs(static_cast<std::size_t>(pieces));
    Pool pool(threads);
    const Pool::Step step(pool);
    const double seconds = median_seconds(repeats, [&] {
        pool.run(pieces, [&](int piece, int) {
            std::int32_t sink[kRows] = {};
            macs[static_cast<std::size_t>(piece)] = kernels.multiply(kRounds, sink);
        });
    });
    return static_cast<double>(macs[0]) * kRounds * pieces / seconds * 1e-9;
}

std::vector<double> linear_seconds(const Kernels &kernels, const Ternary &shape, int tokens,
                                   int threads, int repeats) {
    const float scale = 1;
    Ternary w = shape;
    w.scales = &scale;
    const Tokens x(tokens, padded_columns(w.columns), kernels.tile_tokens(tokens));
    Array<float> out(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(w.rows));
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    return streamed_seconds(
        w.bytes(), threads, repeats, [&](Pool &pool, const unsigned char *packed) {
            w.packed = packed;
            pool.split(w.groups(), Pool::kLong, [&](int begin, int end, int thread) {
                kernels.linear(w, x.activations, begin, end, out.data(), w.rows, false,
                               scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
            });
        });
}

std::vector<double> sparse_seconds(const Kernels &kernels, const Ternary &shape, double share,
                                   int tokens, int threads, int repeats) {
    const float scale = 1;
    Ternary w = shape;
    w.scales = &scale;
    const bool rows = w.order == Order::rows;
    const Tokens x(tokens, padded_columns(w.columns), kernels.tile_tokens(tokens),
                   rows ? 1 : share);
    const std::size_t line = static_cast<std::size_t>(w.line_codes()),
                      n = static_cast<std::size_t>(tokens),
                      outputs = static_cast<std::size_t>(round_up(w.rows, kRows));
    Array<std::int8_t> spread(n * line);
    Array<std::int32_t> sums(static_cast<std::size_t>(threads) * n * line);
    Array<float> gates(n * outputs), out(n * outputs);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    std::mt19937 random(2);
    std::bernoulli_distribution there(share);
    for (std::size_t i = 0; i < gates.size(); ++i) gates.data()[i] = there(random);
    const auto of = [&](int thread) {
        return scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes;
    };
    return streamed_seconds(
        w.bytes(), threads, repeats, [&](Pool &pool, const unsigned char *packed) {
            w.packed = packed;
            if (rows) {
                for (int t = 0; t < tokens; ++t)
                    kernels.spread(w, x.activations, t, spread.data() + t * line);
                std::copy_n(gates.data(), gates.size(), out.data());
                pool.split(w.rows, Pool::kLong, [&](int begin, int end, int thread) {
                    for (int t = 0; t < tokens; ++t)
                        kernels.gated_rows(w, x.activations, t, spread.data() + t * line, begin,
                                           end, out.data() + t * outputs, of(thread));
                });
                return;
            }
            pool.split(w.columns, Pool::kLong, [&](int begin, int end, int thread) {
                for (int t = 0; t < tokens; ++t)
                    kernels.add_columns(w, x.activations, t, begin, end,
                                        sums.data() + (thread * n + t) * line, of(thread));
            });
            pool.split(w.groups(), Pool::kLong, [&](int begin, int end, int) {
                for (int t = 0; t < tokens; ++t)
                    kernels.settle(w, x.activations, t, sums.data() + t * line,
                                   static_cast<std::ptrdiff_t>(n * line), threads, begin, end,
                                   out.data(), static_cast<int>(outputs), false);
            });
        });
}

std::vector<double> screen_seconds(const Kernels &kernels, int rows, int columns, int tokens,
                                   int threads, int repeats) {
    const int padded = round_up(columns, kScreenPad);
    Array<float> scales(static_cast<std::size_t>(rows));
    const Tokens x(tokens, padded, kernels.tile_tokens(tokens));
    Array<float> out(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(rows));
    Ternary w{nullptr, scales.data(), 1, rows, padded};
    return streamed_seconds(w.bytes(), threads, repeats,
                            [&](Pool &pool, const unsigned char *codes) {
                                w.packed = codes;
                                pool.split(w.groups(), Pool::kLong, [&](int begin, int end, int) {
                                    kernels.coarse(w, x.activations, begin, end, out.data(), rows);
                                });
                            });
}

} // namespace trilobit
