// Packed ternary matrices as data: whether they are sound, and from one layout to the other.
#pragma once

#include "kernels.h"

#include <cstddef>
#include <cstdint>

namespace trilobit {

// Every byte stands for as many ternary weights as the layout has.
bool codes_are_ternary(const std::uint8_t *packed, std::size_t size, Layout layout, int threads);

// The same matrix in the layout of `to`, whose packed bytes are written.
void repack(const Ternary &from, const Ternary &to, std::uint8_t *packed, int threads);

} // namespace trilobit
