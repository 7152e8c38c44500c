#include "../kernels.h"

#include <arm_neon.h>

namespace trilobit {
namespace {
#include "float8_neon.h"

#include "wide_f8.h"

#include "int8_neon.h"

#include "all.inl"
} // namespace

extern const Kernels k_neon;
const Kernels k_neon = table("neon", 30);

} // namespace trilobit
