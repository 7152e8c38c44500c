// u8 × s8 products on AVX2: pairs add into int16 lanes, which are widened before they can overflow.

struct Int8 {
    static constexpr int kBytes = 32;
    // The tile kernel adds two products of codes × 4 a block: 2 * 8 * 128 = 2048 a pair, and
    // 16 * -2048 = -32768 still fits int16.
    static constexpr int kBlocksPerWiden = 8;
    static constexpr int kScreenBlocksPerWiden = 4; // 8 products of 2 * 15 * 127 = 3810 fit int16
    static constexpr int kTileVectors = 4;          // accumulator pairs that 16 registers hold
    static constexpr int kStreamTokens = 3;         // measured: 4 leave too few registers
    static constexpr int kTileRows = 2;
    static constexpr int kTileTokens = 6; // 2 × 6 sums + 2 weights + 1 activation + 1 product = 16
    using Vec = __m256i;
    using Acc = __m256i;
    using Wide = __m256i;

    static Vec load(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
    static Vec activations(const std::int8_t *p) { return load(p); }
    static Vec ones(Vec a) { return _mm256_and_si256(a, _mm256_set1_epi8(0x03)); }
    static Vec fours(Vec a) { return _mm256_and_si256(a, _mm256_set1_epi8(0x0c)); }
    static Vec nibbles(Vec a) { return _mm256_and_si256(a, _mm256_set1_epi8(0x0f)); }
    static Vec upper(Vec a) { return _mm256_srli_epi16(a, 4); }
    // The codes of 32 packed bytes, by their place in the byte
    static void unpack(const std::uint8_t *bytes, std::uint8_t *a, std::uint8_t *b, std::uint8_t *c,
                       std::uint8_t *d) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes));
        const __m256i three = _mm256_set1_epi8(3);
        const auto put = [&](std::uint8_t *to, __m256i codes) {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_and_si256(codes, three));
        };
        put(a, v);
        put(b, _mm256_srli_epi16(v, 2));
        put(c, _mm256_srli_epi16(v, 4));
        put(d, _mm256_srli_epi16(v, 6));
    }
    static Acc zero() { return _mm256_setzero_si256(); }
    static Wide zero_wide() { return _mm256_setzero_si256(); }
    static Acc dot(Acc sum, Vec u8, Vec s8) {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(u8, s8));
    }
    // Pin a sum to one register where it stands: gcc keeps the old and the new value of every sum
    // of a tile alive at once otherwise, and sends half of them through memory.
    template <typename T> static void keep(T &value) {
#if defined(__GNUC__)
        __asm__("" : "+x"(value));
#endif
    }
    // sum + 4 * ones + fours: four times the dot product, in int32 lanes
    static Wide widen(Wide sum, Acc ones, Acc fours) {
        const __m256i a = _mm256_madd_epi16(ones, _mm256_set1_epi16(4));
        const __m256i b = _mm256_madd_epi16(fours, _mm256_set1_epi16(1));
        return _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
    }
    static Wide add(Wide sum, Acc a) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(a, _mm256_set1_epi16(1)));
    }
    static constexpr int kVectorsPerRows = 4; // vectors of int32 lanes that hold four rows
    // c[r] = the sum of the lanes of row r
    static void sum_rows(const Wide *w, std::int32_t *c) {
        const __m256i s =
            _mm256_hadd_epi32(_mm256_hadd_epi32(w[0], w[1]), _mm256_hadd_epi32(w[2], w[3]));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(c),
                         _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)));
    }
    // c[r] += the sum of the lanes of row r
    static void add_rows(std::int32_t *c, Acc r0, Acc r1, Acc r2, Acc r3) {
        const __m256i one = _mm256_set1_epi16(1);
        const __m256i a = _mm256_hadd_epi32(_mm256_madd_epi16(r0, one), _mm256_madd_epi16(r1, one));
        const __m256i b = _mm256_hadd_epi32(_mm256_madd_epi16(r2, one), _mm256_madd_epi16(r3, one));
        const __m256i s = _mm256_hadd_epi32(a, b);
        const __m128i rows =
            _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
        __m128i *out = reinterpret_cast<__m128i *>(c);
        _mm_storeu_si128(out, _mm_add_epi32(_mm_loadu_si128(out), rows));
    }
};
