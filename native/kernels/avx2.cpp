#include "../kernels.h"

#include <immintrin.h>

namespace trilobit {
namespace {
#include "float8_avx2.h"

#include "wide_f8.h"

#include "int8_avx2.h"

#include "all.inl"
} // namespace

extern const Kernels k_avx2;
const Kernels k_avx2 = table("avx2", 40);

} // namespace trilobit
