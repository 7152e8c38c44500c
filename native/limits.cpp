#include "limits.h"

#include "memory.h"
#include "pool.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

namespace trilobit {
namespace {

template <typename F> double median_seconds(int repeats, F &&f) {
    std::vector<double> seconds;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f();
        seconds.push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
    return seconds[static_cast<std::size_t>(repeats / 2)];
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
        pool.split(static_cast<int>(kBytes / 4096), [&](int begin, int end, int thread) {
            sinks[static_cast<std::size_t>(thread)] +=
                kernels.read(data.data() + std::size_t{4096} * static_cast<std::size_t>(begin),
                             std::size_t{4096} * static_cast<std::size_t>(end - begin));
        });
    });
    return static_cast<double>(kBytes) / seconds * 1e-9;
}

double linear_seconds(const Kernels &kernels, int rows, int columns, int tokens, int threads,
                      int repeats) {
    const float scale = 1;
    Ternary w{nullptr, &scale, 0, rows, columns};
    const std::size_t bytes =
        static_cast<std::size_t>(w.groups()) * static_cast<std::size_t>(w.blocks()) * kBlockBytes;
    const std::size_t matrices = (std::size_t{256} << 20) / bytes + 1;
    Array<unsigned char> packed(matrices * bytes);
    std::memset(packed.data(), 0x55, matrices * bytes);
    const int padded = round_up(columns, kColumns);
    Array<std::int8_t> codes(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(padded));
    std::memset(codes.data(), 1, codes.size());
    Array<float> scales(static_cast<std::size_t>(tokens));
    Array<std::int32_t> sums(static_cast<std::size_t>(tokens));
    Array<float> out(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(rows));
    const Activations x{codes.data(), scales.data(), sums.data(),
                        tokens,       padded,        kernels.tile_tokens(tokens)};
    Pool pool(threads);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    const Pool::Step step(pool);
    const int passes = static_cast<int>(matrices);
    std::size_t next = 0;
    const double seconds = median_seconds(repeats, [&] {
        for (int i = 0; i < passes; ++i) {
            w.packed = packed.data() + next++ % matrices * bytes;
            pool.split(w.groups(), [&](int begin, int end, int thread) {
                kernels.linear(w, x, begin, end, out.data(), rows, false,
                               scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
            });
        }
    });
    return seconds / passes;
}

double int8_gmac_per_s(const Kernels &kernels, int threads, int repeats) {
    constexpr int kRounds = 400'000;
    std::vector<int> macs(static_cast<std::size_t>(threads));
    Pool pool(threads);
    const Pool::Step step(pool);
    const double seconds = median_seconds(repeats, [&] {
        pool.run([&](int thread) {
            std::int32_t sink[kRows] = {};
            macs[static_cast<std::size_t>(thread)] = kernels.multiply(kRounds, sink);
        });
    });
    return static_cast<double>(macs[0]) * kRounds * threads / seconds * 1e-9;
}

bool codes_are_ternary(const std::uint8_t *packed, std::size_t size, int threads) {
    constexpr std::size_t kChunk = std::size_t{1} << 16;
    std::atomic<bool> sound{true};
    Pool pool(threads);
    const Pool::Step step(pool);
    pool.split(static_cast<int>((size + kChunk - 1) / kChunk), [&](int begin, int end, int) {
        for (int c = begin; c < end; ++c) {
            const std::size_t from = kChunk * static_cast<std::size_t>(c);
            const std::size_t count = std::min(kChunk, size - from);
            std::uint64_t bad = 0;
            std::size_t i = 0;
            for (; i + 8 <= count; i += 8) {
                std::uint64_t codes;
                std::memcpy(&codes, packed + from + i, 8);
                bad |= codes & codes >> 1 & 0x5555555555555555;
            }
            for (; i < count; ++i) bad |= packed[from + i] & packed[from + i] >> 1 & 0x55;
            if (bad) sound.store(false);
        }
    });
    return sound.load();
}

} // namespace trilobit
