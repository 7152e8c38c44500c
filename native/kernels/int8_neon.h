// s8 × s8 products on NEON with the dot-product extension; codes are small enough to be signed.

struct Int8 {
    static constexpr int kBytes = 16;
    static constexpr int kSteps = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenSteps = 1 << 24;
    static constexpr int kAccumulators = 24; // of 32 registers
    static constexpr int kChains = 4;
    static constexpr int kTileTokens = 12;   // of a tile whose codes are unpacked in registers
    static constexpr int kStreamTokens = 24; // from here on unpacking once for all pays
    static constexpr int kPanelTileTokens = 6;
    static constexpr bool kFractions = false; // products are of signed bytes
    static constexpr double kMostly = 0.2, kMostlyBaseThree = 0.2;
    using Vec = uint8x16_t;
    using Acc = int32x4_t;

    static Vec load(const void *p) { return vld1q_u8(static_cast<const std::uint8_t *>(p)); }
    static void store(std::uint8_t *p, Vec a) { vst1q_u8(p, a); }
    // The same four activations for every row
    static Vec broadcast(const std::int8_t *p) {
        std::int32_t four;
        std::memcpy(&four, p, 4);
        return vreinterpretq_u8_s32(vdupq_n_s32(four));
    }
    // The codes of two bits at one place of every byte, the lowest first
    static Vec codes(Vec bytes, int place) {
        const int8x16_t right = vdupq_n_s8(static_cast<std::int8_t>(-2 * place));
        return vandq_u8(vshlq_u8(bytes, right), vdupq_n_u8(3));
    }
    // Fractions of digits in base 3, as the next two take them
    static Vec fractions(Vec bytes) { return bytes; }
    // ⌊3b / 256⌋
    static Vec thirds(Vec bytes) { return vshrq_n_u8(vhaddq_u8(bytes, vshrq_n_u8(bytes, 1)), 6); }
    static Vec triple(Vec a) { return vaddq_u8(a, vaddq_u8(a, a)); }
    static Acc zero() { return vdupq_n_s32(0); }
    static Acc dot(Acc sum, Vec u8, Vec s8) {
        return vdotq_s32(sum, vreinterpretq_s8_u8(u8), vreinterpretq_s8_u8(s8));
    }
    // Pin a value to one register where it stands: gcc keeps the old and the new value of every
    // sum of a tile alive at once otherwise, and sends half of them through memory.
    template <typename T> static void keep(T &value) {
#if defined(__GNUC__)
        __asm__("" : "+w"(value));
#else
        (void)value;
#endif
    }
    static void clear(std::int32_t *sums) { vst1q_s32(sums, vdupq_n_s32(0)); }
    static void add_to(std::int32_t *sums, Acc a) {
        vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), a));
    }
    // Four vectors of bytes -> their bytes at each place side by side.
    static void interleave(Vec *v) {
        const uint8x16x2_t low = vzipq_u8(v[0], v[1]), high = vzipq_u8(v[2], v[3]);
        for (int i = 0; i < 2; ++i) {
            const uint16x8x2_t all =
                vzipq_u16(vreinterpretq_u16_u8(low.val[i]), vreinterpretq_u16_u8(high.val[i]));
            v[2 * i] = vreinterpretq_u8_u16(all.val[0]);
            v[2 * i + 1] = vreinterpretq_u8_u16(all.val[1]);
        }
    }
    // 16 bytes of each of four rows: their words at each place side by side, a block from each
    // other.
    static void gather(const std::uint8_t *const *rows, std::uint8_t *out) {
        uint32x4_t r[4];
        for (int i = 0; i < 4; ++i) r[i] = vreinterpretq_u32_u8(vld1q_u8(rows[i]));
        const uint32x4x2_t even = vzipq_u32(r[0], r[2]), odd = vzipq_u32(r[1], r[3]);
        for (int i = 0; i < 2; ++i) {
            const uint32x4x2_t all = vzipq_u32(even.val[i], odd.val[i]);
            for (int j = 0; j < 2; ++j)
                vst1q_u8(out + (2 * i + j) * kBlockBytes, vreinterpretq_u8_u32(all.val[j]));
        }
    }
    // Four vectors make a block.
    static void store_blocks(std::uint8_t *p, std::ptrdiff_t, const Vec *v) {
        for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, v[i]);
    }
    // The sums of four vectors are those of 16 rows, which grow.
    static void add_blocks(std::int32_t *sums, std::ptrdiff_t, const Acc *v) {
        for (int i = 0; i < 4; ++i) add_to(sums + 4 * i, v[i]);
    }
    // Of all lanes
    static std::int32_t total(Acc a) { return vaddvq_s32(a); }
};
