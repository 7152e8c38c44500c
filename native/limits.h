// What this machine can do at most, and what kernels make of it.
#pragma once

#include "kernels.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trilobit {

double dram_read_gb_per_s(const Kernels &kernels, int threads, int repeats);
double int8_gmac_per_s(const Kernels &kernels, int threads, int repeats);

// Of one product of `tokens` tokens with a ternary matrix of this shape, all of it; of one without
// what counts for nothing, where a share of rows or columns counts for each token; and of one pass
// of the screen of a head: an average over so many that the weights come from memory, `repeats`
// times.
std::vector<double> linear_seconds(const Kernels &kernels, const Ternary &shape, int tokens,
                                   int threads, int repeats);
std::vector<double> sparse_seconds(const Kernels &kernels, const Ternary &shape, double share,
                                   int tokens, int threads, int repeats);
std::vector<double> screen_seconds(const Kernels &kernels, int rows, int columns, int tokens,
                                   int threads, int repeats);

} // namespace trilobit
