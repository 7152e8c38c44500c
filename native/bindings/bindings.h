// What each file adds to the module.
#pragma once

#include "arguments.h"

namespace trilobit {

void bind_kernels(nb::module_ &m);
void bind_limits(nb::module_ &m);
void bind_packing(nb::module_ &m);
void bind_sampler(nb::module_ &m);
void bind_decoder(nb::module_ &m);

} // namespace trilobit
