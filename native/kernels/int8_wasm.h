// u8 × s8 products on WebAssembly: as 16 bits, pairs of which add into int32 lanes; or four at a
// time, where the engine has relaxed instructions. Codes are small enough for those to be exact.

struct Int8 {
    static constexpr int kBytes = 16;
    static constexpr int kSteps = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenSteps = 1 << 24;
    static constexpr int kAccumulators = 8; // of 16 registers, on x86
    static constexpr int kChains = 1;
    static constexpr int kTileTokens = 8;    // of a tile whose codes are unpacked in registers
    static constexpr int kStreamTokens = 24; // from here on unpacking once for all pays
    static constexpr int kPanelTileTokens = 4;
#if defined(__wasm_relaxed_simd__)
    static constexpr bool kFractions = false; // of bytes from 128 on, engines differ
#else
    static constexpr bool kFractions = true; // dot() takes bytes up to 255
#endif
    static constexpr double kMostly = 0.28, kMostlyBaseThree = 0.28;
    using Vec = v128_t;
    using Acc = v128_t;

    static Vec load(const void *p) { return wasm_v128_load(p); }
    static void store(std::uint8_t *p, Vec a) { wasm_v128_store(p, a); }
    // The same four activations for every row
    static Vec broadcast(const std::int8_t *p) { return wasm_v128_load32_splat(p); }
    // The codes of two bits at one place of every byte, the lowest first
    static Vec codes(Vec bytes, int place) {
        return wasm_v128_and(wasm_u16x8_shr(bytes, static_cast<unsigned>(2 * place)),
                             wasm_i8x16_const_splat(3));
    }
    // Fractions of digits in base 3, as the next two take them
    static Vec fractions(Vec bytes) { return bytes; }
    // ⌊3b / 256⌋
    static Vec thirds(Vec b) {
        const Vec one = wasm_u8x16_gt(b, wasm_u8x16_const_splat(85)), // -1 where that is so
            two = wasm_u8x16_gt(b, wasm_u8x16_const_splat(170));
        return wasm_i8x16_neg(wasm_i8x16_add(one, two));
    }
    static Vec triple(Vec a) { return wasm_i8x16_add(a, wasm_i8x16_add(a, a)); }
    static Acc zero() { return wasm_i32x4_const_splat(0); }
    static Acc dot(Acc sum, Vec u8, Vec s8) {
#if defined(__wasm_relaxed_simd__)
        return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(s8, u8, sum);
#else
        // Of each pair of bytes, the first and the second.
        const Vec first = wasm_i32x4_dot_i16x8(wasm_v128_and(u8, wasm_i16x8_const_splat(0xff)),
                                               wasm_i16x8_shr(wasm_i16x8_shl(s8, 8), 8)),
                  second = wasm_i32x4_dot_i16x8(wasm_u16x8_shr(u8, 8), wasm_i16x8_shr(s8, 8));
        return wasm_i32x4_add(sum, wasm_i32x4_add(first, second));
#endif
    }
    template <typename T> static void keep(T &) {}
    static void clear(std::int32_t *sums) { wasm_v128_store(sums, zero()); }
    static void add_to(std::int32_t *sums, Acc a) {
        wasm_v128_store(sums, wasm_i32x4_add(wasm_v128_load(sums), a));
    }
    // Four vectors of bytes -> their bytes at each place side by side.
    static void interleave(Vec *v) {
        const auto low = [](Vec a, Vec b) {
            return wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        };
        const auto high = [](Vec a, Vec b) {
            return wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                      15, 31);
        };
        const Vec a = low(v[0], v[1]), b = high(v[0], v[1]);
        const Vec c = low(v[2], v[3]), d = high(v[2], v[3]);
        v[0] = wasm_i16x8_shuffle(a, c, 0, 8, 1, 9, 2, 10, 3, 11);
        v[1] = wasm_i16x8_shuffle(a, c, 4, 12, 5, 13, 6, 14, 7, 15);
        v[2] = wasm_i16x8_shuffle(b, d, 0, 8, 1, 9, 2, 10, 3, 11);
        v[3] = wasm_i16x8_shuffle(b, d, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    // 16 bytes of each of four rows: their words at each place side by side, a block from each
    // other.
    static void gather(const std::uint8_t *const *rows, std::uint8_t *out) {
        Vec r[4];
        for (int i = 0; i < 4; ++i) r[i] = load(rows[i]);
        const Vec a = wasm_i32x4_shuffle(r[0], r[1], 0, 4, 1, 5),
                  b = wasm_i32x4_shuffle(r[0], r[1], 2, 6, 3, 7),
                  c = wasm_i32x4_shuffle(r[2], r[3], 0, 4, 1, 5),
                  d = wasm_i32x4_shuffle(r[2], r[3], 2, 6, 3, 7);
        store(out, wasm_i64x2_shuffle(a, c, 0, 2));
        store(out + kBlockBytes, wasm_i64x2_shuffle(a, c, 1, 3));
        store(out + 2 * kBlockBytes, wasm_i64x2_shuffle(b, d, 0, 2));
        store(out + 3 * kBlockBytes, wasm_i64x2_shuffle(b, d, 1, 3));
    }
    // Four vectors make a block.
    static void store_blocks(std::uint8_t *p, std::ptrdiff_t, const Vec *v) {
        for (int i = 0; i < 4; ++i) store(p + 16 * i, v[i]);
    }
    // The sums of four vectors are those of 16 rows, which grow.
    static void add_blocks(std::int32_t *sums, std::ptrdiff_t, const Acc *v) {
        for (int i = 0; i < 4; ++i) add_to(sums + 4 * i, v[i]);
    }
    // Of all lanes
    static std::int32_t total(Acc a) {
        std::int32_t v[4];
        wasm_v128_store(v, a);
        return v[0] + v[1] + v[2] + v[3];
    }
};
