// The Python face of the core. What lies here checks every argument, and nothing else throws.

#include "bindings.h"

NB_MODULE(_native, m) {
    m.doc() = "The C++ core: kernels, decoder and sampler.";
    // Daemon threads hold what they use when the interpreter goes.
    nanobind::set_leak_warnings(false);
    trilobit::bind_kernels(m);
    trilobit::bind_limits(m);
    trilobit::bind_packing(m);
    trilobit::bind_sampler(m);
    trilobit::bind_decoder(m);
}
