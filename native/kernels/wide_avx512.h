// Sixteen floats on AVX-512, each lane computed as in F8.

struct Wide {
    __m512 v;
};
constexpr int kWide = 16;       // lanes
constexpr int kTileQueries = 8; // whose sums fit into the registers, two vectors each

// See Int8::keep.
inline void keep(Wide &a) {
#if defined(__GNUC__)
    __asm__("" : "+v"(a.v));
#endif
}
inline Wide load_wide(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Wide load_wide_f16(const std::uint16_t *p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
}
inline Wide load_wide_i8(const std::int8_t *p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
inline void store_wide(float *p, Wide a) { _mm512_storeu_ps(p, a.v); }
inline Wide all_wide(float a) { return {_mm512_set1_ps(a)}; }
inline Wide add(Wide a, Wide b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Wide sub(Wide a, Wide b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Wide mul(Wide a, Wide b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Wide max(Wide a, Wide b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Wide round(Wide a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
inline Wide exp2i(Wide n) {
    const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
