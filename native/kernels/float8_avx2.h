// Eight floats on AVX2 + FMA + F16C.

struct F8 {
    __m256 v;
};

// See Int8::keep.
inline void keep(F8 &a) {
#if defined(__GNUC__)
    __asm__("" : "+x"(a.v));
#endif
}
inline F8 load8(const float *p) { return {_mm256_loadu_ps(p)}; }
inline void store8(float *p, F8 a) { _mm256_storeu_ps(p, a.v); }
inline F8 all8(float a) { return {_mm256_set1_ps(a)}; }
inline F8 add(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 sub(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 mul(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 div(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 abs(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline F8 sqrt(F8 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F8 round(F8 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
inline F8 exp2i(F8 n) {
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
}

inline F8 load_f16(const std::uint16_t *p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))};
}
inline F8 load_i8(const std::int8_t *p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
inline F8 load_bf16(const std::uint16_t *p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline void store_f16(std::uint16_t *p, F8 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p),
                     _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

// p[0..7] - a, as floats
inline F8 difference(const std::int32_t *p, std::int32_t a) {
    const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(eight, _mm256_set1_epi32(a)))};
}

// Round 16 floats to int8 (nearest even, saturating), and add the codes to `sum`.
struct I32 {
    __m256i v;
};
inline I32 zero_i32() { return {_mm256_setzero_si256()}; }
inline I32 store_i8(std::int8_t *p, F8 a, F8 b, I32 sum) {
    const __m256i low = _mm256_cvtps_epi32(a.v), high = _mm256_cvtps_epi32(b.v);
    const __m256i words =
        _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), _MM_SHUFFLE(3, 1, 2, 0));
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
    return {_mm256_add_epi32(sum.v, _mm256_add_epi32(low, high))};
}
inline std::int32_t total(I32 a) {
    std::int32_t lane[8];
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(lane), a.v);
    return lane[0] + lane[1] + lane[2] + lane[3] + lane[4] + lane[5] + lane[6] + lane[7];
}
