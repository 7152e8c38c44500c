// s8 × s8 products on NEON with the dot-product extension; codes are small enough to be signed.

struct Int8 {
    static constexpr int kBytes = 16;
    static constexpr int kBlocksPerWiden = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenBlocksPerWiden = 1 << 24;
    static constexpr int kTileVectors = 8;
    static constexpr int kStreamTokens = 4;
    static constexpr int kTileRows = 4;
    static constexpr int kTileTokens = 6; // 24 accumulators of 32 registers
    using Vec = uint8x16_t;
    using Acc = int32x4_t;
    using Wide = int32x4_t;

    static Vec load(const void *p) { return vld1q_u8(static_cast<const std::uint8_t *>(p)); }
    static Vec activations(const std::int8_t *p) { return vreinterpretq_u8_s8(vld1q_s8(p)); }
    static Vec ones(Vec a) { return vandq_u8(a, vdupq_n_u8(0x03)); }
    static Vec fours(Vec a) { return vandq_u8(a, vdupq_n_u8(0x0c)); }
    static Vec nibbles(Vec a) { return vandq_u8(a, vdupq_n_u8(0x0f)); }
    static Vec upper(Vec a) { return vshrq_n_u8(a, 4); }
    // The codes of 16 packed bytes, by their place in the byte
    static void unpack(const std::uint8_t *bytes, std::uint8_t *a, std::uint8_t *b, std::uint8_t *c,
                       std::uint8_t *d) {
        const uint8x16_t v = vld1q_u8(bytes), three = vdupq_n_u8(3);
        vst1q_u8(a, vandq_u8(v, three));
        vst1q_u8(b, vandq_u8(vshrq_n_u8(v, 2), three));
        vst1q_u8(c, vandq_u8(vshrq_n_u8(v, 4), three));
        vst1q_u8(d, vshrq_n_u8(v, 6));
    }
    static Acc zero() { return vdupq_n_s32(0); }
    static Wide zero_wide() { return vdupq_n_s32(0); }
    static Acc dot(Acc sum, Vec u8, Vec s8) {
        return vdotq_s32(sum, vreinterpretq_s8_u8(u8), vreinterpretq_s8_u8(s8));
    }
    // Pin a sum to one register where it stands: gcc keeps the old and the new value of every sum
    // of a tile alive at once otherwise, and sends half of them through memory.
    template <typename T> static void keep(T &value) {
#if defined(__GNUC__)
        __asm__("" : "+w"(value));
#endif
    }
    // sum + 4 * ones + fours: four times the dot product
    static Wide widen(Wide sum, Acc ones, Acc fours) {
        return vaddq_s32(sum, vaddq_s32(vshlq_n_s32(ones, 2), fours));
    }
    static Wide add(Wide sum, Acc a) { return vaddq_s32(sum, a); }
    static constexpr int kVectorsPerRows = 8; // vectors of int32 lanes that hold four rows
    // c[r] = the sum of the lanes of row r
    static void sum_rows(const Wide *w, std::int32_t *c) {
        const int32x4_t a = vpaddq_s32(vaddq_s32(w[0], w[1]), vaddq_s32(w[2], w[3]));
        const int32x4_t b = vpaddq_s32(vaddq_s32(w[4], w[5]), vaddq_s32(w[6], w[7]));
        vst1q_s32(c, vpaddq_s32(a, b));
    }
    // c[r] += the sum of the lanes of row r
    static void add_rows(std::int32_t *c, Acc r0, Acc r1, Acc r2, Acc r3) {
        const int32x4_t rows = vpaddq_s32(vpaddq_s32(r0, r1), vpaddq_s32(r2, r3));
        vst1q_s32(c, vaddq_s32(vld1q_s32(c), rows));
    }
};
