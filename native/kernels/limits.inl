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

// Products from registers and adds, as in the widest tile of `linear`. sink: [kRows], zeros.
inline int multiply(int rounds, std::int32_t *sink) {
    constexpr int V = kVectors, T = Int8::kPanelTileTokens;
    alignas(64) std::uint8_t codes[V][Int8::kBytes];
    alignas(64) std::int8_t x[T][Int8::kBytes];
    for (int i = 0; i < Int8::kBytes; ++i) {
        for (auto &vector : codes) vector[i] = 1;
        for (auto &token : x) token[i] = static_cast<std::int8_t>(1 + *sink);
    }
    Int8::Acc acc[T][V];
    TRILOBIT_UNROLL
    for (int t = 0; t < T; ++t)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) acc[t][v] = Int8::zero();
    for (int n = 0; n < rounds; ++n) {
        Int8::Vec w[V];
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) w[v] = Int8::load(codes[v]);
        TRILOBIT_UNROLL
        for (int t = 0; t < T; ++t) {
            Int8::Vec four = Int8::broadcast(x[t]);
            Int8::keep(four);
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) {
                acc[t][v] = Int8::dot(acc[t][v], w[v], four);
                Int8::keep(acc[t][v]);
            }
        }
        TRILOBIT_CLOBBER
    }
    TRILOBIT_UNROLL
    for (int t = 0; t < T; ++t)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) Int8::add_to(sink + v * kLanes, acc[t][v]);
    return V * T * Int8::kBytes;
}
