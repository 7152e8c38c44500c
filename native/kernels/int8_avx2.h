// u8 × s8 products on AVX2: pairs add into int16 lanes, which are widened before they can overflow.

struct Int8 {
    static constexpr int kBytes = 32;
    // A pair of products of ternary codes is at most 2 * 2 * 128 = 512, and 64 * -512 = -32768.
    static constexpr int kSteps = 64;
    static constexpr int kScreenSteps = 40; // pairs of 2 * 3 * 128 = 768 fit int16
    static constexpr int kAccumulators = 8; // more leave too few registers to unpack in
    static constexpr int kChains = 1;
    static constexpr int kTileTokens = 12;   // of a tile whose codes are unpacked in registers
    static constexpr int kStreamTokens = 40; // from here on unpacking once for all pays
    static constexpr int kPanelTileTokens = 6;
    static constexpr bool kFractions = false; // int16 does not hold products of fractions
    static constexpr double kMostly = 0.38, kMostlyBaseThree = 0.2;
    using Vec = __m256i;
    using Acc = __m256i;

    static Vec load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
    static void store(std::uint8_t *p, Vec a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), a);
    }
    // The same four activations for every row
    static Vec broadcast(const std::int8_t *p) {
        std::int32_t four;
        std::memcpy(&four, p, 4);
        return _mm256_set1_epi32(four);
    }
    // The codes of two bits at one place of every byte, the lowest first
    static Vec codes(Vec bytes, int place) {
        return _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * place), _mm256_set1_epi8(3));
    }
    // Fractions of digits in base 3, as the next two take them: b - 128, whose order is that of
    // signed bytes, and whose triple is 3b - 128, modulo 256
    static Vec fractions(Vec bytes) {
        return _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80)));
    }
    // ⌊3b / 256⌋. The border is pinned because gcc turns a comparison with this constant into two.
    static Vec thirds(Vec b) {
        Vec border = _mm256_set1_epi8(85 - 128);
        keep(border);
        const Vec one = _mm256_cmpgt_epi8(b, border); // -1 where that is so
        const Vec two = _mm256_cmpgt_epi8(b, _mm256_set1_epi8(170 - 128));
        return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
    }
    static Vec triple(Vec a) { return _mm256_add_epi8(a, _mm256_add_epi8(a, a)); }
    static Acc zero() { return _mm256_setzero_si256(); }
    static Acc dot(Acc sum, Vec u8, Vec s8) {
        const Vec pairs = _mm256_maddubs_epi16(u8, s8);
#if defined(__GNUC__) // which would put each new sum elsewhere and move it back
        __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(pairs));
        return sum;
#else
        return _mm256_add_epi16(sum, pairs);
#endif
    }
    // Pin a value to one register where it stands: gcc keeps the old and the new value of every
    // sum of a tile alive at once otherwise, and sends half of them through memory.
    template <typename T> static void keep(T &value) {
#if defined(__GNUC__)
        __asm__("" : "+x"(value));
#else
        (void)value;
#endif
    }
    static void clear(std::int32_t *sums) {
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(sums), _mm256_setzero_si256());
    }
    // The sums of eight rows grow by a pair of lanes each.
    static void add_to(std::int32_t *sums, Acc a) {
        __m256i *p = reinterpret_cast<__m256i *>(sums);
        _mm256_storeu_si256(
            p, _mm256_add_epi32(_mm256_loadu_si256(p), _mm256_madd_epi16(a, _mm256_set1_epi16(1))));
    }
    // Four vectors of bytes -> their bytes at each place side by side, 16 bytes of each at a time.
    static void interleave(Vec *v) {
        const Vec a = _mm256_unpacklo_epi8(v[0], v[1]), b = _mm256_unpackhi_epi8(v[0], v[1]);
        const Vec c = _mm256_unpacklo_epi8(v[2], v[3]), d = _mm256_unpackhi_epi8(v[2], v[3]);
        v[0] = _mm256_unpacklo_epi16(a, c);
        v[1] = _mm256_unpackhi_epi16(a, c);
        v[2] = _mm256_unpacklo_epi16(b, d);
        v[3] = _mm256_unpackhi_epi16(b, d);
    }
    // 16 bytes of each of four rows: their words at each place side by side, a block from each
    // other.
    static void gather(const std::uint8_t *const *rows, std::uint8_t *out) {
        __m128i r[4];
        for (int i = 0; i < 4; ++i)
            r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows[i]));
        const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), b = _mm_unpackhi_epi32(r[0], r[1]);
        const __m128i c = _mm_unpacklo_epi32(r[2], r[3]), d = _mm_unpackhi_epi32(r[2], r[3]);
        const __m128i all[] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c),
                               _mm_unpacklo_epi64(b, d), _mm_unpackhi_epi64(b, d)};
        for (int i = 0; i < 4; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * kBlockBytes), all[i]);
    }
    // 16 bytes of each of four vectors make a block; blocks lie `apart` from each other.
    static void store_blocks(std::uint8_t *p, std::ptrdiff_t apart, const Vec *v) {
        store(p, _mm256_permute2x128_si256(v[0], v[1], 0x20));
        store(p + 32, _mm256_permute2x128_si256(v[2], v[3], 0x20));
        store(p + apart, _mm256_permute2x128_si256(v[0], v[1], 0x31));
        store(p + apart + 32, _mm256_permute2x128_si256(v[2], v[3], 0x31));
    }
    // Four sums of each of four vectors are those of 16 rows, which grow; `apart` from each other.
    static void add_blocks(std::int32_t *sums, std::ptrdiff_t apart, const Acc *v) {
        const auto grow = [](std::int32_t *p, Acc a) {
            __m256i *q = reinterpret_cast<__m256i *>(p);
            _mm256_storeu_si256(q, _mm256_add_epi32(_mm256_loadu_si256(q), a));
        };
        Acc wide[4];
        for (int i = 0; i < 4; ++i) wide[i] = _mm256_madd_epi16(v[i], _mm256_set1_epi16(1));
        v = wide;
        grow(sums, _mm256_permute2x128_si256(v[0], v[1], 0x20));
        grow(sums + 8, _mm256_permute2x128_si256(v[2], v[3], 0x20));
        grow(sums + apart, _mm256_permute2x128_si256(v[0], v[1], 0x31));
        grow(sums + apart + 8, _mm256_permute2x128_si256(v[2], v[3], 0x31));
    }
    // Of all lanes
    static std::int32_t total(Acc a) {
        const Acc wide = _mm256_madd_epi16(a, _mm256_set1_epi16(1));
        __m128i four =
            _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
};
