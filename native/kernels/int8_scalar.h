// u8 × s8 products in plain C++.

struct Int8 {
    static constexpr int kBytes = 32;
    static constexpr int kSteps = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenSteps = 1 << 24;
    static constexpr int kAccumulators = 12;
    static constexpr int kChains = 1;
    static constexpr int kTileTokens = 12;   // of a tile whose codes are unpacked in registers
    static constexpr int kStreamTokens = 24; // from here on unpacking once for all pays
    static constexpr int kPanelTileTokens = 6;
    static constexpr bool kFractions = true; // dot() takes bytes up to 255
    static constexpr double kMostly = 0.6, kMostlyBaseThree = 0.6;
    struct Vec {
        std::uint8_t v[32];
    };
    struct Acc {
        std::int32_t v[8];
    };

    static Vec load(const void *p) {
        Vec r;
        std::memcpy(r.v, p, 32);
        return r;
    }
    static void store(std::uint8_t *p, const Vec &a) { std::memcpy(p, a.v, 32); }
    // The same four activations for every row
    static Vec broadcast(const std::int8_t *p) {
        Vec r;
        for (int i = 0; i < 32; i += 4) std::memcpy(r.v + i, p, 4);
        return r;
    }
    // The codes of two bits at one place of every byte, the lowest first
    static Vec codes(Vec bytes, int place) {
        for (auto &x : bytes.v) x = static_cast<std::uint8_t>(x >> 2 * place & 3);
        return bytes;
    }
    // Fractions of digits in base 3, as the next two take them
    static Vec fractions(Vec bytes) { return bytes; }
    // ⌊3b / 256⌋
    static Vec thirds(Vec bytes) {
        for (auto &x : bytes.v) x = static_cast<std::uint8_t>(3 * x >> 8);
        return bytes;
    }
    static Vec triple(Vec a) {
        for (auto &x : a.v) x = static_cast<std::uint8_t>(3 * x);
        return a;
    }
    static Acc zero() { return {}; }
    static Acc dot(Acc sum, const Vec &u8, const Vec &s8) {
        for (int i = 0; i < 32; ++i) sum.v[i / 4] += u8.v[i] * static_cast<std::int8_t>(s8.v[i]);
        return sum;
    }
    template <typename T> static void keep(T &) {}
    static void clear(std::int32_t *sums) {
        for (int i = 0; i < 8; ++i) sums[i] = 0;
    }
    static void add_to(std::int32_t *sums, const Acc &a) {
        for (int i = 0; i < 8; ++i) sums[i] += a.v[i];
    }
    // Four vectors of bytes -> their bytes at each place side by side, 16 bytes of each at a time.
    static void interleave(Vec *v) {
        Vec all[4];
        for (int i = 0; i < 32; ++i)
            for (int j = 0; j < 4; ++j) all[i % 16 / 4].v[i / 16 * 16 + i % 4 * 4 + j] = v[j].v[i];
        std::memcpy(v, all, sizeof all);
    }
    // 16 bytes of each of four rows: their words at each place side by side, a block from each
    // other.
    static void gather(const std::uint8_t *const *rows, std::uint8_t *out) {
        for (int i = 0; i < 4; ++i)
            for (int b = 0; b < 4; ++b)
                std::memcpy(out + b * kBlockBytes + i * 4, rows[i] + b * 4, 4);
    }
    // 16 bytes of each of four vectors make a block; blocks lie `apart` from each other.
    static void store_blocks(std::uint8_t *p, std::ptrdiff_t apart, const Vec *v) {
        for (int i = 0; i < 8; ++i)
            std::memcpy(p + i / 4 * apart + i % 4 * 16, v[i % 4].v + i / 4 * 16, 16);
    }
    // Four sums of each of four vectors are those of 16 rows, which grow; `apart` from each other.
    static void add_blocks(std::int32_t *sums, std::ptrdiff_t apart, const Acc *v) {
        for (int i = 0; i < 32; ++i)
            sums[i / 16 * apart + i % 16] += v[i % 16 / 4].v[i / 16 * 4 + i % 4];
    }
    // Of all lanes
    static std::int32_t total(const Acc &a) {
        std::int32_t sum = 0;
        for (const std::int32_t lane : a.v) sum += lane;
        return sum;
    }
};
