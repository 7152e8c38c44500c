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
    static constexpr double kMostly = 0.2;
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
    // The codes of `Bits` bits at one place of every byte, the lowest first
    template <int Bits> static Vec codes(Vec bytes, int place) {
        const int8x16_t right = vdupq_n_s8(static_cast<std::int8_t>(-Bits * place));
        return vandq_u8(vshlq_u8(bytes, right), vdupq_n_u8((1 << Bits) - 1));
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
    // Every 16 bytes on their own, of which a vector has no more.
    static void store_quarters(std::uint8_t *p, std::ptrdiff_t, Vec a) { vst1q_u8(p, a); }
    static void add_quarters(std::int32_t *sums, std::ptrdiff_t, Acc a) { add_to(sums, a); }
    // Of all lanes
    static std::int32_t total(Acc a) { return vaddvq_s32(a); }
};
