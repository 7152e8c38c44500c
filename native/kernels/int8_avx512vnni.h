// u8 × s8 products on AVX-512 VNNI: a vector holds the 16 rows of a packed block.

struct Int8 {
    static constexpr int kBytes = 64;
    static constexpr int kSteps = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenSteps = 1 << 24;
    static constexpr int kAccumulators = 24;      // of 32 registers
    static constexpr int kChains = 4;             // a product takes 4 to 5 cycles
    static constexpr int kTileTokens = 12;        // of a tile whose codes are unpacked in registers
    static constexpr int kStreamTokens = 1 << 24; // from here on unpacking once for all pays
    static constexpr int kPanelTileTokens = 12;
    static constexpr bool kFractions = true; // dot() takes bytes up to 255
    static constexpr double kMostly = 0.32, kMostlyBaseThree = 0.26;
    using Vec = __m512i;
    using Acc = __m512i;

    static Vec load(const void *p) { return _mm512_loadu_si512(p); }
    static void store(std::uint8_t *p, Vec a) { _mm512_storeu_si512(p, a); }
    // The same four activations for every row
    static Vec broadcast(const std::int8_t *p) {
        std::int32_t four;
        std::memcpy(&four, p, 4);
        return _mm512_set1_epi32(four);
    }
    // The codes of two bits at one place of every byte, the lowest first
    static Vec codes(Vec bytes, int place) {
        return _mm512_and_si512(_mm512_srli_epi16(bytes, static_cast<unsigned>(2 * place)),
                                _mm512_set1_epi8(3));
    }
    // Fractions of digits in base 3, as the next two take them: b of 1 to 255
    static Vec fractions(Vec bytes) { return bytes; }
    // ⌊3b / 256⌋. The averages round up, to ⌊3b / 4⌋ + 1.
    static Vec thirds(Vec b) {
        const Vec three = _mm512_avg_epu8(b, _mm512_avg_epu8(b, _mm512_setzero_si512()));
        return _mm512_and_si512(_mm512_srli_epi16(_mm512_sub_epi8(three, _mm512_set1_epi8(1)), 6),
                                _mm512_set1_epi8(3));
    }
    static Vec triple(Vec a) { return _mm512_add_epi8(a, _mm512_add_epi8(a, a)); }
    static Acc zero() { return _mm512_setzero_si512(); }
    static Acc dot(Acc sum, Vec u8, Vec s8) { return _mm512_dpbusd_epi32(sum, u8, s8); }
    // Pin a value to one register where it stands: gcc keeps the old and the new value of every
    // sum of a tile alive at once otherwise, and sends half of them through memory.
    template <typename T> static void keep(T &value) {
#if defined(__GNUC__)
        __asm__("" : "+v"(value));
#else
        (void)value;
#endif
    }
    static void clear(std::int32_t *sums) { _mm512_storeu_si512(sums, _mm512_setzero_si512()); }
    static void add_to(std::int32_t *sums, Acc a) {
        _mm512_storeu_si512(sums, _mm512_add_epi32(_mm512_loadu_si512(sums), a));
    }
    // Four vectors of bytes -> their bytes at each place side by side, 16 bytes of each at a time.
    static void interleave(Vec *v) {
        const Vec a = _mm512_unpacklo_epi8(v[0], v[1]), b = _mm512_unpackhi_epi8(v[0], v[1]);
        const Vec c = _mm512_unpacklo_epi8(v[2], v[3]), d = _mm512_unpackhi_epi8(v[2], v[3]);
        v[0] = _mm512_unpacklo_epi16(a, c);
        v[1] = _mm512_unpackhi_epi16(a, c);
        v[2] = _mm512_unpacklo_epi16(b, d);
        v[3] = _mm512_unpackhi_epi16(b, d);
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
        Vec all[4];
        blocks(v, all);
        for (int i = 0; i < 4; ++i) store(p + i * apart, all[i]);
    }
    // Four sums of each of four vectors are those of 16 rows, which grow; `apart` from each other.
    static void add_blocks(std::int32_t *sums, std::ptrdiff_t apart, const Acc *v) {
        Acc all[4];
        blocks(v, all);
        for (int i = 0; i < 4; ++i) add_to(sums + i * apart, all[i]);
    }
    static void blocks(const Vec *v, Vec *all) {
        const Vec a = _mm512_shuffle_i32x4(v[0], v[1], 0x44),
                  b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
        const Vec c = _mm512_shuffle_i32x4(v[2], v[3], 0x44),
                  d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
        all[0] = _mm512_shuffle_i32x4(a, c, 0x88);
        all[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
        all[2] = _mm512_shuffle_i32x4(b, d, 0x88);
        all[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    // Of all lanes
    static std::int32_t total(Acc a) { return _mm512_reduce_add_epi32(a); }
};
