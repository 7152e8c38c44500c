// Eight floats as two NEON vectors: the same lanes, the same order of sums as on AVX2.

struct F8 {
    float32x4_t a, b;
};

// See Int8::keep.
inline void keep(F8 &a) {
#if defined(__GNUC__)
    __asm__("" : "+w"(a.a), "+w"(a.b));
#endif
}
inline F8 load8(const float *p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store8(float *p, F8 x) {
    vst1q_f32(p, x.a);
    vst1q_f32(p + 4, x.b);
}
inline F8 all8(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 add(F8 x, F8 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline F8 sub(F8 x, F8 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline F8 mul(F8 x, F8 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline F8 div(F8 x, F8 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline F8 fma(F8 x, F8 y, F8 z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
inline F8 max(F8 x, F8 y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
inline F8 min(F8 x, F8 y) { return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b)}; }
inline F8 abs(F8 x) { return {vabsq_f32(x.a), vabsq_f32(x.b)}; }
inline F8 sqrt(F8 x) { return {vsqrtq_f32(x.a), vsqrtq_f32(x.b)}; }
inline F8 round(F8 x) { return {vrndnq_f32(x.a), vrndnq_f32(x.b)}; }
// 2^n for integral n in [-126, 127]
inline float32x4_t exp2i(float32x4_t n) {
    const int32x4_t e = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(e, 23));
}
inline F8 exp2i(F8 n) { return {exp2i(n.a), exp2i(n.b)}; }

inline F8 load_f16(const std::uint16_t *p) {
    const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
    return {vcvt_f32_f16(vget_low_f16(h)), vcvt_f32_f16(vget_high_f16(h))};
}
inline F8 load_i8(const std::int8_t *p) {
    const int16x8_t words = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(words)))};
}
inline F8 load_bf16(const std::uint16_t *p) {
    const uint16x8_t h = vld1q_u16(p);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(h), 16))};
}
inline void store_f16(std::uint16_t *p, F8 x) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcombine_f16(vcvt_f16_f32(x.a), vcvt_f16_f32(x.b))));
}

// p[0..7] - a, as floats
inline F8 difference(const std::int32_t *p, std::int32_t a) {
    const int32x4_t all = vdupq_n_s32(a);
    return {vcvtq_f32_s32(vsubq_s32(vld1q_s32(p), all)),
            vcvtq_f32_s32(vsubq_s32(vld1q_s32(p + 4), all))};
}

// Round 16 floats to int8 (nearest even, saturating), and add the codes to `sum`.
struct I32 {
    int32x4_t v;
};
inline I32 zero_i32() { return {vdupq_n_s32(0)}; }
inline int16x8_t round_i16(F8 x) {
    return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(x.a)), vqmovn_s32(vcvtnq_s32_f32(x.b)));
}
inline I32 store_i8(std::int8_t *p, F8 x, F8 y, I32 sum) {
    const int8x16_t bytes = vcombine_s8(vqmovn_s16(round_i16(x)), vqmovn_s16(round_i16(y)));
    vst1q_s8(p, bytes);
    return {vpadalq_s16(sum.v, vpaddlq_s8(bytes))};
}
inline std::int32_t total(I32 x) { return vaddvq_s32(x.v); }
