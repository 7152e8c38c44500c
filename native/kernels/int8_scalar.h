// u8 × s8 products in plain C++.

struct Int8 {
    static constexpr int kBytes = 32;
    static constexpr int kBlocksPerWiden = 1 << 24; // int32 lanes never need widening
    static constexpr int kScreenBlocksPerWiden = 1 << 24;
    static constexpr int kTileVectors = 4;
    static constexpr int kStreamTokens = 4;
    static constexpr int kTileRows = 2;
    static constexpr int kTileTokens = 6;
    struct Vec {
        std::uint8_t v[32];
    };
    struct Acc {
        std::int32_t v[8];
    };
    using Wide = Acc;

    static Vec load(const void *p) {
        Vec r;
        std::memcpy(r.v, p, 32);
        return r;
    }
    static Vec activations(const std::int8_t *p) { return load(p); }
    static Vec ones(Vec a) {
        for (auto &x : a.v) x &= 0x03;
        return a;
    }
    static Vec fours(Vec a) {
        for (auto &x : a.v) x &= 0x0c;
        return a;
    }
    static Vec nibbles(Vec a) {
        for (auto &x : a.v) x &= 0x0f;
        return a;
    }
    static Vec upper(Vec a) {
        for (auto &x : a.v) x = static_cast<std::uint8_t>(x >> 4);
        return a;
    }
    // The codes of 32 packed bytes, by their place in the byte
    static void unpack(const std::uint8_t *bytes, std::uint8_t *a, std::uint8_t *b, std::uint8_t *c,
                       std::uint8_t *d) {
        for (int i = 0; i < 32; ++i) {
            a[i] = bytes[i] & 3;
            b[i] = bytes[i] >> 2 & 3;
            c[i] = bytes[i] >> 4 & 3;
            d[i] = bytes[i] >> 6;
        }
    }
    static Acc zero() { return {}; }
    static Wide zero_wide() { return {}; }
    static Acc dot(Acc sum, const Vec &u8, const Vec &s8) {
        for (int i = 0; i < 32; ++i) sum.v[i / 4] += u8.v[i] * static_cast<std::int8_t>(s8.v[i]);
        return sum;
    }
    template <typename T> static void keep(T &) {}
    // sum + 4 * ones + fours: four times the dot product
    static Wide widen(Wide sum, const Acc &ones, const Acc &fours) {
        for (int i = 0; i < 8; ++i) sum.v[i] += 4 * ones.v[i] + fours.v[i];
        return sum;
    }
    static Wide add(Wide sum, const Acc &a) {
        for (int i = 0; i < 8; ++i) sum.v[i] += a.v[i];
        return sum;
    }
    static constexpr int kVectorsPerRows = 4; // vectors of int32 lanes that hold four rows
    // c[r] = the sum of the lanes of row r
    static void sum_rows(const Wide *w, std::int32_t *c) {
        for (int r = 0; r < kRows; ++r) {
            c[r] = 0;
            for (const std::int32_t lane : w[r].v) c[r] += lane;
        }
    }
    // c[r] += the sum of the lanes of row r
    static void add_rows(std::int32_t *c, const Acc &r0, const Acc &r1, const Acc &r2,
                         const Acc &r3) {
        const Acc *rows[kRows] = {&r0, &r1, &r2, &r3};
        for (int r = 0; r < kRows; ++r)
            for (int i = 0; i < 8; ++i) c[r] += rows[r]->v[i];
    }
};
