#include "../kernels.h"

#include <immintrin.h>

namespace trilobit {
namespace {
#include "float8_avx2.h"

#include "wide_avx512.h"

#include "int8_avx512vnni.h"

#include "all.inl"
} // namespace

extern const Kernels k_avx512vnni;
const Kernels k_avx512vnni = table("avx512vnni", 120);

} // namespace trilobit
