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
    static constexpr double kMostly = 0.6;
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
    // The codes of `Bits` bits at one place of every byte, the lowest first
    template <int Bits> static Vec codes(Vec bytes, int place) {
        for (auto &x : bytes.v)
            x = static_cast<std::uint8_t>(x >> Bits * place & ((1 << Bits) - 1));
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
    // Every 16 bytes on their own, `apart` from each other.
    static void store_quarters(std::uint8_t *p, std::ptrdiff_t apart, const Vec &a) {
        std::memcpy(p, a.v, 16);
        std::memcpy(p + apart, a.v + 16, 16);
    }
    // The sums of four rows grow, and of four more each `apart` rows further.
    static void add_quarters(std::int32_t *sums, std::ptrdiff_t apart, const Acc &a) {
        for (int i = 0; i < 8; ++i) sums[i / 4 * apart + i % 4] += a.v[i];
    }
    // Of all lanes
    static std::int32_t total(const Acc &a) {
        std::int32_t sum = 0;
        for (const std::int32_t lane : a.v) sum += lane;
        return sum;
    }
};
