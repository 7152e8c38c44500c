// What the machine can do at most, measured with the same instructions as the kernels.

// Read every byte once; the sum keeps the compiler from skipping it.
inline std::uint64_t read(const void *data, std::size_t bytes) {
    const unsigned char *p = static_cast<const unsigned char *>(data);
    F8 sum[8];
    for (F8 &s : sum) s = all8(0);
    for (std::size_t i = 0; i + 256 <= bytes; i += 256) TRILOBIT_UNROLL
        for (int j = 0; j < 8; ++j)
            sum[j] = add(sum[j], load8(reinterpret_cast<const float *>(p + i + j * 32)));
    for (int j = 1; j < 8; ++j) sum[0] = add(sum[0], sum[j]);
    return sum_lanes(sum[0]) > 0;
}

// Products from registers and adds, as in the widest tile of `linear`.
inline int multiply(int rounds, std::int32_t *sink) {
    constexpr int R = Int8::kTileRows, kTile = Int8::kTileTokens;
    Int8::Acc acc[kTile][R];
    TRILOBIT_UNROLL
    for (int t = 0; t < kTile; ++t)
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) acc[t][r] = Int8::zero();
    alignas(64) std::uint8_t codes[R][Int8::kBytes];
    alignas(64) std::int8_t x[kTile][Int8::kBytes];
    for (int i = 0; i < Int8::kBytes; ++i) {
        for (auto &row : codes) row[i] = static_cast<std::uint8_t>(i % 3);
        for (auto &row : x) row[i] = static_cast<std::int8_t>(i - 16 + *sink);
    }
    for (int n = 0; n < rounds; ++n) {
        Int8::Vec w[R];
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) w[r] = Int8::load(codes[r]);
        TRILOBIT_UNROLL
        for (int t = 0; t < kTile; ++t) {
            const Int8::Vec a = Int8::load(x[t]);
            TRILOBIT_UNROLL
            for (int r = 0; r < R; ++r) {
                acc[t][r] = Int8::dot(acc[t][r], w[r], a);
                Int8::keep(acc[t][r]);
            }
        }
        TRILOBIT_CLOBBER
    }
    TRILOBIT_UNROLL
    for (int t = 0; t < kTile; t += kRows / R) {
        if constexpr (R == 4)
            Int8::add_rows(sink, acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        else
            Int8::add_rows(sink, acc[t][0], acc[t][1], acc[t + 1][0], acc[t + 1][1]);
    }
    return R * kTile * Int8::kBytes;
}
