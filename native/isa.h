// Which instruction sets this processor runs, and which one is used.
#pragma once

#include "kernels.h"

#include <string>
#include <vector>

namespace trilobit {

// The kernels this processor can run, from the plainest to the fastest.
const std::vector<const Kernels *> &available_kernels();

// The fastest, or the one that the environment variable TRILOBIT_ISA names. Returns null and
// explains in `error` when that one is unknown or cannot run here.
const Kernels *chosen_kernels(std::string *error);

} // namespace trilobit
