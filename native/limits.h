// What this machine can do at most, and other passes over memory at its full speed.
#pragma once

#include "kernels.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace trilobit {

double dram_read_gb_per_s(const Kernels &kernels, int threads, int repeats);
double int8_gmac_per_s(const Kernels &kernels, int threads, int repeats);

// Of one product of `tokens` tokens with a ternary matrix [rows, columns], and of one pass of the
// screen of a head: an average over so many that the weights come from memory, `repeats` times.
std::vector<double> linear_seconds(const Kernels &kernels, int rows, int columns, int tokens,
                                   int threads, int repeats);
std::vector<double> screen_seconds(const Kernels &kernels, int rows, int columns, int tokens,
                                   int threads, int repeats);

// No two-bit code of packed ternary weights is 3.
bool codes_are_ternary(const std::uint8_t *packed, std::size_t size, int threads);

} // namespace trilobit
