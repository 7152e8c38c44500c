#include "../kernels.h"

#include <wasm_simd128.h>

namespace trilobit {
namespace {
#include "float8_wasm.h"

#include "wide_f8.h"

#include "int8_wasm.h"

#include "all.inl"
} // namespace

extern const Kernels k_relaxed;
const Kernels k_relaxed = table("relaxed", 10);

// Whether this engine multiplies bytes as these kernels need it, the first signed, and rounds a
// product and its sum once. The specification lets it do otherwise, but always the same.
bool relaxed_is_exact();
bool relaxed_is_exact() {
    volatile float one_and_a_bit = 1 + 0x1p-12f, its_rounded_square = 1 + 0x1p-11f;
    const F8 x = all8(one_and_a_bit);
    const float rest = first_lane(fma(x, x, all8(-its_rounded_square)));
    volatile std::int8_t a = -128, code = 15;
    const Int8::Vec s8 = wasm_i8x16_splat(a), u8 = wasm_i8x16_splat(code);
    return rest == 0x1p-24f && Int8::total(Int8::dot(Int8::zero(), u8, s8)) == 16 * -128 * 15;
}

} // namespace trilobit
