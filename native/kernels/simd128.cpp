#include "../kernels.h"

#include <wasm_simd128.h>

namespace trilobit {
namespace {
#include "float8_wasm.h"

#include "wide_f8.h"

#include "int8_wasm.h"

#include "all.inl"
} // namespace

extern const Kernels k_simd128;
const Kernels k_simd128 = table("simd128", 10);

} // namespace trilobit
