// Activations as kernels take them.
#pragma once

#include "check.h"

#include <algorithm>
#include <vector>

namespace trilobit::test {

// Activations of one test, with the scales and sums that the kernel expects beside the codes.
struct Tokens {
    std::vector<std::int8_t> codes, tiled; // [count, columns], and as the kernel wants them
    std::vector<float> scales;
    std::vector<std::int32_t> sums;
    int count, columns, tile;

    template <typename F>
    Tokens(const Kernels &k, int count, int columns, F &&code)
        : codes(size(count, columns)), tiled(size(count, padded_columns(columns))),
          sums(size(count)), count(count), columns(columns), tile(k.tile_tokens(count)) {
        for (int t = 0; t < count; ++t) {
            scales.push_back(0.5f + static_cast<float>(t) / 7);
            const int first = t / tile * tile, together = std::min(tile, count - first);
            for (int i = 0; i < columns; ++i) {
                const std::int8_t c = static_cast<std::int8_t>(code());
                codes[size(t, columns) + size(i)] = c;
                tiled[size(first, padded_columns(columns)) +
                      size((i / 4 * together + t - first) * 4 + i % 4)] = c;
                sums[size(t)] += c;
            }
        }
    }

    Activations view() {
        return {tiled.data(), scales.data(), sums.data(), count, padded_columns(columns), tile};
    }
};

} // namespace trilobit::test
