// Eight floats as two vectors of WebAssembly: the same lanes, the same order of sums as on AVX2.

struct F8 {
    v128_t a, b;
};

inline void keep(F8 &) {}
inline F8 load8(const float *p) { return {wasm_v128_load(p), wasm_v128_load(p + 4)}; }
inline void store8(float *p, F8 x) {
    wasm_v128_store(p, x.a);
    wasm_v128_store(p + 4, x.b);
}
inline F8 all8(float x) { return {wasm_f32x4_splat(x), wasm_f32x4_splat(x)}; }
inline F8 add(F8 x, F8 y) { return {wasm_f32x4_add(x.a, y.a), wasm_f32x4_add(x.b, y.b)}; }
inline F8 sub(F8 x, F8 y) { return {wasm_f32x4_sub(x.a, y.a), wasm_f32x4_sub(x.b, y.b)}; }
inline F8 mul(F8 x, F8 y) { return {wasm_f32x4_mul(x.a, y.a), wasm_f32x4_mul(x.b, y.b)}; }
inline F8 div(F8 x, F8 y) { return {wasm_f32x4_div(x.a, y.a), wasm_f32x4_div(x.b, y.b)}; }

#if defined(__wasm_relaxed_simd__)
// One rounding, where relaxed.cpp finds that the engine has it so.
inline F8 fma(F8 x, F8 y, F8 z) {
    return {wasm_f32x4_relaxed_madd(x.a, y.a, z.a), wasm_f32x4_relaxed_madd(x.b, y.b, z.b)};
}
#else
#include "fuse.h"

// There is no fused product: this computes with doubles, two at a time, and once more by `fuse`
// where rounding twice may show, which is rare.
inline v128_t upper(v128_t x) { return wasm_i32x4_shuffle(x, x, 2, 3, 2, 3); }
inline v128_t fused_pair(v128_t x, v128_t y, v128_t z, v128_t *doubtful) {
    const v128_t product =
        wasm_f64x2_mul(wasm_f64x2_promote_low_f32x4(x), wasm_f64x2_promote_low_f32x4(y));
    const v128_t sum = wasm_f64x2_add(product, wasm_f64x2_promote_low_f32x4(z));
    const v128_t middle = wasm_i64x2_eq(wasm_v128_and(sum, wasm_i64x2_const_splat(0x1fffffff)),
                                        wasm_i64x2_const_splat(0x10000000));
    *doubtful = wasm_v128_or(*doubtful, middle);
    return wasm_f32x4_demote_f64x2_zero(sum);
}
inline v128_t fused(v128_t x, v128_t y, v128_t z, v128_t *doubtful) {
    const v128_t low = fused_pair(x, y, z, doubtful),
                 high = fused_pair(upper(x), upper(y), upper(z), doubtful);
    const v128_t all = wasm_i32x4_shuffle(low, high, 0, 1, 4, 5);
    const v128_t small = wasm_f32x4_le(wasm_f32x4_abs(all), wasm_f32x4_const_splat(0x1p-126f));
    *doubtful = wasm_v128_or(*doubtful, small);
    return all;
}
__attribute__((noinline)) inline F8 fuse(F8 x, F8 y, F8 z) {
    float v[4][8];
    store8(v[0], x);
    store8(v[1], y);
    store8(v[2], z);
    for (int i = 0; i < 8; ++i) v[3][i] = fuse(v[0][i], v[1][i], v[2][i]);
    return load8(v[3]);
}
inline F8 fma(F8 x, F8 y, F8 z) {
    v128_t doubtful = wasm_i32x4_const_splat(0);
    const F8 r = {fused(x.a, y.a, z.a, &doubtful), fused(x.b, y.b, z.b, &doubtful)};
    return wasm_v128_any_true(doubtful) ? fuse(x, y, z) : r;
}
#endif

// As on x86: the second where one is no number.
inline F8 max(F8 x, F8 y) { return {wasm_f32x4_pmax(y.a, x.a), wasm_f32x4_pmax(y.b, x.b)}; }
inline F8 min(F8 x, F8 y) { return {wasm_f32x4_pmin(y.a, x.a), wasm_f32x4_pmin(y.b, x.b)}; }
inline F8 abs(F8 x) { return {wasm_f32x4_abs(x.a), wasm_f32x4_abs(x.b)}; }
inline F8 sqrt(F8 x) { return {wasm_f32x4_sqrt(x.a), wasm_f32x4_sqrt(x.b)}; }
inline F8 round(F8 x) { return {wasm_f32x4_nearest(x.a), wasm_f32x4_nearest(x.b)}; }
// 2^n for integral n in [-126, 127]
inline v128_t exp2i(v128_t n) {
    const v128_t e = wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_const_splat(127));
    return wasm_i32x4_shl(e, 23);
}
inline F8 exp2i(F8 n) { return {exp2i(n.a), exp2i(n.b)}; }

// float8_scalar.h has the same, one by one.
inline v128_t from_f16(v128_t h) {
    const v128_t sign = wasm_i32x4_shl(wasm_v128_and(h, wasm_i32x4_const_splat(0x8000)), 16);
    const v128_t magnitude = wasm_v128_and(h, wasm_i32x4_const_splat(0x7fff));
    const v128_t moved = wasm_i32x4_shl(magnitude, 13);
    const v128_t value = wasm_f32x4_mul(moved, wasm_f32x4_const_splat(0x1p112f));
    const v128_t special = wasm_v128_or(moved, wasm_i32x4_const_splat(0x7f800000));
    const v128_t is_special = wasm_i32x4_ge(magnitude, wasm_i32x4_const_splat(0x7c00));
    return wasm_v128_or(sign, wasm_v128_bitselect(special, value, is_special));
}
inline F8 load_f16(const std::uint16_t *p) {
    const v128_t h = wasm_v128_load(p);
    return {from_f16(wasm_u32x4_extend_low_u16x8(h)), from_f16(wasm_u32x4_extend_high_u16x8(h))};
}
inline F8 load_i8(const std::int8_t *p) {
    const v128_t words = wasm_i16x8_load8x8(p);
    return {wasm_f32x4_convert_i32x4(wasm_i32x4_extend_low_i16x8(words)),
            wasm_f32x4_convert_i32x4(wasm_i32x4_extend_high_i16x8(words))};
}
inline F8 load_bf16(const std::uint16_t *p) {
    const v128_t h = wasm_v128_load(p), zero = wasm_i32x4_const_splat(0);
    return {wasm_i16x8_shuffle(zero, h, 0, 8, 0, 9, 0, 10, 0, 11),
            wasm_i16x8_shuffle(zero, h, 0, 12, 0, 13, 0, 14, 0, 15)};
}
inline v128_t to_f16(v128_t x) {
    const v128_t sign = wasm_v128_and(wasm_u32x4_shr(x, 16), wasm_i32x4_const_splat(0x8000));
    const v128_t magnitude = wasm_v128_and(x, wasm_i32x4_const_splat(0x7fffffff));
    const v128_t small = wasm_i32x4_sub(wasm_f32x4_add(magnitude, wasm_f32x4_const_splat(0.5f)),
                                        wasm_i32x4_const_splat(0x3f000000));
    const v128_t odd = wasm_v128_and(wasm_u32x4_shr(magnitude, 13), wasm_i32x4_const_splat(1));
    const v128_t normal = wasm_u32x4_shr(
        wasm_i32x4_add(wasm_i32x4_add(magnitude, odd), wasm_i32x4_const_splat(0xfff - 0x38000000)),
        13);
    const auto where = [&](v128_t condition, int value, v128_t otherwise) {
        return wasm_v128_bitselect(wasm_i32x4_splat(value), otherwise, condition);
    };
    const auto above = [&](int border) {
        return wasm_i32x4_gt(magnitude, wasm_i32x4_splat(border));
    };
    const v128_t half = wasm_v128_bitselect(normal, small, above(0x38800000 - 1));
    return wasm_v128_or(
        sign, where(above(0x7f800000), 0x7e00, where(above(0x477ff000 - 1), 0x7c00, half)));
}
inline void store_f16(std::uint16_t *p, F8 x) {
    wasm_v128_store(p, wasm_u16x8_narrow_i32x4(to_f16(x.a), to_f16(x.b)));
}

// p[0..7] - a, as floats
inline F8 difference(const std::int32_t *p, std::int32_t a) {
    const v128_t all = wasm_i32x4_splat(a);
    return {wasm_f32x4_convert_i32x4(wasm_i32x4_sub(wasm_v128_load(p), all)),
            wasm_f32x4_convert_i32x4(wasm_i32x4_sub(wasm_v128_load(p + 4), all))};
}

// Round 16 floats to int8 (nearest even, saturating), and add the codes to `sum`.
struct I32 {
    v128_t v;
};
inline I32 zero_i32() { return {wasm_i32x4_const_splat(0)}; }
inline v128_t round_i16(F8 x) {
    const F8 whole = round(x);
    return wasm_i16x8_narrow_i32x4(wasm_i32x4_trunc_sat_f32x4(whole.a),
                                   wasm_i32x4_trunc_sat_f32x4(whole.b));
}
inline I32 store_i8(std::int8_t *p, F8 x, F8 y, I32 sum) {
    const v128_t bytes = wasm_i8x16_narrow_i16x8(round_i16(x), round_i16(y));
    wasm_v128_store(p, bytes);
    return {wasm_i32x4_add(
        sum.v, wasm_i32x4_extadd_pairwise_i16x8(wasm_i16x8_extadd_pairwise_i8x16(bytes)))};
}
inline std::int32_t total(I32 x) {
    std::int32_t v[4];
    wasm_v128_store(v, x.v);
    return v[0] + v[1] + v[2] + v[3];
}
