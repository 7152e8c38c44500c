// Ternary matrices with a scale for every 128 columns of a row, times activations of 16 bits with a
// scale for every 128 columns of a token:
//
//     y = Σ over groups of columns: (Σ code·a − Σ a) · (weight scale · activation scale)
//
// A group's sum is an exact integer, below 2^24, so exact as a float too; groups are added in their
// order. Such models are trained with float activations, which 16 bits a group come closer to than
// bfloat16 does. The two bytes of an activation pass the kernels of ternary.inl as if they were two
// tokens.

constexpr int kLargestCode = 127 * 256; // the high byte, rounded to nearest, is then at most 127

inline void quantise_groups(const float *x, int n, const WideActivations &out, int t) {
    std::int8_t *high = out.bytes.first(2 * t), *low = high + 4;
    const std::ptrdiff_t step = 4 * out.bytes.tokens_beside(2 * t);
    for (int g = 0; g < out.groups(); ++g) {
        alignas(32) float values[kScaleColumns];
        const int first = g * kScaleColumns, count = min_of(n - first, kScaleColumns);
        int i = 0;
        for (; i < count; ++i) values[i] = x[first + i];
        for (; i < kScaleColumns; ++i) values[i] = 0;
        F8 largest = all8(0);
        for (i = 0; i < kScaleColumns; i += 8) largest = max(largest, abs(load8(values + i)));
        const float absmax = max_lanes(largest);
        const float scale = absmax > 1e-30f ? static_cast<float>(kLargestCode) / absmax : 0;
        const F8 scale8 = all8(scale);
        std::int32_t sum = 0;
        for (i = 0; i < kScaleColumns; i += 8)
            store8(values + i, round(mul(load8(values + i), scale8)));
        for (i = 0; i < kScaleColumns; i += 4, high += step, low += step)
            for (int j = 0; j < 4; ++j) {
                const std::int32_t code = static_cast<std::int32_t>(values[i + j]);
                const std::int32_t upper = (code + 128) >> 8;
                high[j] = static_cast<std::int8_t>(upper);
                low[j] = static_cast<std::int8_t>(code - upper * 256);
                sum += code;
            }
        out.bytes.scales[t * out.groups() + g] = scale > 0 ? 1.0f / scale : 0;
        out.bytes.sums[t * out.groups() + g] = sum;
    }
}

constexpr int kMaxScales = 1 << 12; // of a row of the widest matrix that a config may have
static_assert(sizeof(float) * (kRows + 4) * kMaxScales <= kScratchBytes);
static_assert(kRows * sizeof(float) == kBlockBytes); // as Int8::gather has it

// The scales of a row group as floats: out[group of columns][row], and of up to three groups more.
// Beyond the last row stands that once more. lines: for four rows of scales.
inline void load_scales(const Dense &scales, int group, float *out, float *lines) {
    for (int r = 0; r < kRows; r += 4) {
        const std::uint8_t *four[4];
        for (int i = 0; i < 4; ++i) {
            float *line = lines + i * kMaxScales;
            embed(scales, min_of(group * kRows + r + i, scales.rows - 1), line);
            four[i] = reinterpret_cast<const std::uint8_t *>(line);
        }
        for (int g = 0; g < scales.columns; g += 4) {
            Int8::gather(four, reinterpret_cast<std::uint8_t *>(out + g * kRows + r));
            for (const std::uint8_t *&line : four) line += 16;
        }
    }
}

// An even number, so that both bytes of an activation stand in one tile.
inline int wide_tile_tokens(int tokens) {
    constexpr int kMost = Int8::kTileTokens / 2;
    const int tiles = (tokens / 2 + kMost - 1) / kMost;
    return 2 * ((tokens / 2 + tiles - 1) / tiles);
}

// A tile of T / 2 tokens times a row group: acc[token][row]. scales: [group of columns][row].
template <int T>
inline void group_tile(const Ternary &w, const WideActivations &x, int token,
                       const std::uint8_t *packed, const float *scales, float *acc) {
    constexpr int V = vectors_for(T), kBlocks = kScaleColumns / block_columns_of(Layout::two_bit);
    const std::int8_t *codes = x.bytes.first(2 * token);
    for (int g = 0; g < w.scale_groups(); ++g) {
        const std::uint8_t *block = packed + std::ptrdiff_t{g} * kBlocks * kBlockBytes;
        std::int32_t sums[T * kRows];
    TRILOBIT_UNROLL
        for (int v = 0; v < kVectors; v += V)
            tile<TwoBit, V, T>(block + v * Int8::kBytes, min_of(kBlocks, w.blocks() - g * kBlocks),
                          codes + std::ptrdiff_t{g} * kScaleColumns * T, sums + v * kLanes);
        for (int t = 0; t < T / 2; ++t) {
            const int at = (token + t) * x.groups() + g;
            const float scale = x.bytes.scales[at];
            const std::int32_t *high = sums + 2 * t * kRows, *low = high + kRows;
            for (int r = 0; r < kRows; ++r)
                acc[t * kRows + r] +=
                    static_cast<float>(high[r] * 256 + low[r] - x.bytes.sums[at]) *
                    (scales[g * kRows + r] * scale);
        }
    }
}

template <int T = Int8::kTileTokens>
inline void group_tokens(const Ternary &w, const WideActivations &x, int token, int tokens,
                         const std::uint8_t *packed, const float *scales, float *acc) {
    if constexpr (T > 2)
        if (2 * tokens < T) return group_tokens<T - 2>(w, x, token, tokens, packed, scales, acc);
    group_tile<T>(w, x, token, packed, scales, acc);
}

inline void linear_groups(const Ternary &w, const WideActivations &x, int group_begin,
                          int group_end, float *out, int out_stride, bool accumulate,
                          void *scratch) {
    static_assert(Int8::kTileTokens % 2 == 0);
    float *scales = static_cast<float *>(scratch); // [group of columns][row]
    const int most = x.bytes.tile / 2;
    for (int group = group_begin; group < group_end; ++group) {
        const int rows = min_of(kRows, w.rows - group * kRows);
        const std::uint8_t *packed = w.packed + std::ptrdiff_t{group} * w.blocks() * kBlockBytes;
        load_scales(w.group_scales, group, scales, scales + kRows * kMaxScales);
        for (int token = 0; token < x.tokens(); token += most) {
            const int tokens = min_of(most, x.tokens() - token);
            float acc[Int8::kTileTokens / 2 * kRows] = {};
            group_tokens(w, x, token, tokens, packed, scales, acc);
            for (int t = 0; t < tokens; ++t) {
                float *y = out + std::ptrdiff_t{token + t} * out_stride + group * kRows;
                for (int r = 0; r < rows; ++r)
                    y[r] = accumulate ? y[r] + acc[t * kRows + r] : acc[t * kRows + r];
            }
        }
    }
}

inline void embed_groups(const Ternary &table, int row, float *out) {
    const std::uint8_t *packed = table.packed +
                                 std::ptrdiff_t{row / kRows} * table.blocks() * kBlockBytes +
                                 row % kRows * 4;
    float scales[kMaxScales];
    embed(table.group_scales, row, scales);
    for (int i = 0; i < table.columns; ++i) {
        const std::uint8_t byte = packed[i / block_columns_of(Layout::two_bit) * kBlockBytes + i % 4];
        const int code = byte >> 2 * (i % block_columns_of(Layout::two_bit) / 4) & 3;
        out[i] = static_cast<float>(code - 1) * scales[i / kScaleColumns];
    }
}
