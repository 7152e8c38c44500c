#include "../kernels.h"

#include <immintrin.h>

namespace trilobit {
namespace {
#include "float8_avx2.h"

#include "wide_f8.h"

#include "int8_avxvnni.h"

#include "all.inl"
} // namespace

extern const Kernels k_avxvnni;
const Kernels k_avxvnni = table("avxvnni", 80);

} // namespace trilobit
