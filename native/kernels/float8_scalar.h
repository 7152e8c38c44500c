// Eight floats in plain C++: for processors without a faster instruction set.

struct F8 {
    float v[8];
};

template <typename Function> inline F8 each(Function f) {
    F8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = f(i);
    return r;
}

inline void keep(F8 &) {}
inline F8 load8(const float *p) {
    return each([&](int i) { return p[i]; });
}
inline void store8(float *p, F8 a) {
    for (int i = 0; i < 8; ++i) p[i] = a.v[i];
}
inline F8 all8(float a) {
    return each([&](int) { return a; });
}
inline F8 add(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline F8 sub(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline F8 mul(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline F8 div(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
#ifdef __FP_FAST_FMAF // there is an instruction even without vectors
inline F8 fma(F8 a, F8 b, F8 c) {
    return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
#else
#include "fuse.h"

#if defined(__GNUC__)
__attribute__((noinline)) // a copy in every kernel would double the module
#endif
inline F8 fma(F8 a, F8 b, F8 c) {
    constexpr std::uint64_t kLeast = std::uint64_t{0x381} << 52; // 2^-126
    F8 r;
    bool doubtful = false;
    for (int i = 0; i < 8; ++i) {
        const double sum = double{a.v[i]} * b.v[i] + c.v[i];
        std::uint64_t bits;
        std::memcpy(&bits, &sum, 8);
        doubtful |= (bits & 0x1fffffff) == 0x10000000 || (bits << 1 >> 1) - 1 < kLeast - 1;
        r.v[i] = static_cast<float>(sum);
    }
    if (doubtful)
        for (int i = 0; i < 8; ++i) r.v[i] = fuse(a.v[i], b.v[i], c.v[i]);
    return r;
}
#endif
inline F8 max(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 min(F8 a, F8 b) {
    return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 abs(F8 a) {
    return each([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; });
}
inline float bits_to_float(std::uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline std::uint32_t float_to_bits(float f) {
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline F8 sqrt(F8 a) {
    return each([&](int i) { return std::sqrt(a.v[i]); });
}
// Nearest, ties to even: adding 1.5 * 2^23 leaves no bits for a fraction.
inline float round(float a) {
    const float magnitude = a < 0 ? -a : a;
    return magnitude < 4194304.0f ? (a + 12582912.0f) - 12582912.0f : a;
}
inline F8 round(F8 a) {
    return each([&](int i) { return round(a.v[i]); });
}
// 2^n for integral n in [-126, 127]
inline F8 exp2i(F8 n) {
    return each([&](int i) {
        return bits_to_float(static_cast<std::uint32_t>(static_cast<int>(n.v[i]) + 127) << 23);
    });
}

inline float from_f16(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
    const std::uint32_t magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // Moving the exponent by a product also handles subnormals: 2^112 = 2^(127-15).
    const float value = bits_to_float(magnitude << 13) * bits_to_float(0x77800000);
    return bits_to_float(sign | float_to_bits(value));
}
// Nearest even, as F16C does; subnormals and infinities included.
inline std::uint16_t to_f16(float f) {
    const std::uint32_t bits = float_to_bits(f);
    const std::uint32_t sign = bits >> 16 & 0x8000;
    const std::uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);
    std::uint32_t half;
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 puts the units of 2^-24 into the last bit of the sum.
        half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
    } else {
        half = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
    }
    return static_cast<std::uint16_t>(sign | half);
}
inline F8 load_f16(const std::uint16_t *p) {
    return each([&](int i) { return from_f16(p[i]); });
}
inline F8 load_i8(const std::int8_t *p) {
    return each([&](int i) { return static_cast<float>(p[i]); });
}
inline F8 load_bf16(const std::uint16_t *p) {
    return each([&](int i) { return bits_to_float(static_cast<std::uint32_t>(p[i]) << 16); });
}
inline void store_f16(std::uint16_t *p, F8 a) {
    for (int i = 0; i < 8; ++i) p[i] = to_f16(a.v[i]);
}

// p[0..7] - a, as floats
inline F8 difference(const std::int32_t *p, std::int32_t a) {
    return each([&](int i) { return static_cast<float>(p[i] - a); });
}

// Round 16 floats to int8 (nearest even, saturating), and add the codes to `sum`.
struct I32 {
    std::int32_t v;
};
inline I32 zero_i32() { return {0}; }
inline I32 store_i8(std::int8_t *p, F8 a, F8 b, I32 sum) {
    for (int i = 0; i < 16; ++i) {
        const float x = round(i < 8 ? a.v[i] : b.v[i - 8]);
        p[i] = static_cast<std::int8_t>(x >= 127 ? 127 : x > -128 ? static_cast<int>(x) : -128);
        sum.v += p[i];
    }
    return sum;
}
inline std::int32_t total(I32 a) { return a.v; }
