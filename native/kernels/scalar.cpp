#include "../kernels.h"

#include <cmath>
#include <cstring>

namespace trilobit {
namespace {
#include "float8_scalar.h"

#include "wide_f8.h"

#include "int8_scalar.h"

#include "all.inl"
} // namespace

extern const Kernels k_scalar;
const Kernels k_scalar = table("scalar", 2);

} // namespace trilobit
