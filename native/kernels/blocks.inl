// Ternary matrices with a scale for every block of 128 columns of a row, times activations of 16
// bits with a scale for every block of a token:
//
//     y = Σ over blocks: (Σ code·a − Σ a) · (weight scale · activation scale)
//
// A block's sum is an exact integer, below 2^24, so exact as a float too; blocks are added in their
// order. Such models are trained with float activations, which 16 bits a block come closer to than
// bfloat16 does. The two bytes of an activation pass the kernels of ternary.inl as if they were two
// tokens.

constexpr int kLargestCode = 127 * 256; // the high byte, rounded to nearest, is then at most 127

inline void quantise_blocks(const float *x, int n, std::int8_t *codes, int stride, float *scales,
                            std::int32_t *sums) {
    for (int b = 0; b < stride / kColumns; ++b) {
        alignas(32) float values[kColumns];
        const int first = b * kColumns, count = min_of(n - first, kColumns);
        int i = 0;
        for (; i < count; ++i) values[i] = x[first + i];
        for (; i < kColumns; ++i) values[i] = 0;
        F8 largest = all8(0);
        for (i = 0; i < kColumns; i += 8) largest = max(largest, abs(load8(values + i)));
        const float absmax = max_lanes(largest);
        const float t = absmax > 1e-30f ? static_cast<float>(kLargestCode) / absmax : 0;
        const F8 t8 = all8(t);
        std::int8_t *high = codes + first, *low = codes + stride + first;
        std::int32_t sum = 0;
        for (i = 0; i < kColumns; i += 8) store8(values + i, round(mul(load8(values + i), t8)));
        for (i = 0; i < kColumns; ++i) {
            const std::int32_t code = static_cast<std::int32_t>(values[i]);
            const std::int32_t upper = (code + 128) >> 8;
            high[i] = static_cast<std::int8_t>(upper);
            low[i] = static_cast<std::int8_t>(code - upper * 256);
            sum += code;
        }
        scales[b] = t > 0 ? 1.0f / t : 0;
        sums[b] = sum;
    }
}

constexpr int kMaxBlocks = 1 << 12; // of the widest matrix that a config may have

// The scales of row `row` as floats, in a multiple of kFloatPad.
template <Float type> inline void load_scales(const Dense &scales, int row, float *out) {
    const std::ptrdiff_t start = std::ptrdiff_t{row} * scales.columns;
    for (int i = 0; i < scales.columns; i += kFloatPad) {
        F8 low, high;
        load_tail<type>(scales.data, start + i, min_of(scales.columns - i, kFloatPad), &low, &high);
        store8(out + i, low);
        store8(out + i + 8, high);
    }
}

inline void load_scales(const Dense &scales, int row, float *out) {
    switch (scales.type) {
    case Float::f32: return load_scales<Float::f32>(scales, row, out);
    case Float::f16: return load_scales<Float::f16>(scales, row, out);
    case Float::bf16: return load_scales<Float::bf16>(scales, row, out);
    }
}

// acc[token][row] += what block b adds, from the sums of its codes with the high and low bytes.
inline void add_block(const BlockActivations &x, const float (*scales)[kMaxBlocks], int b,
                      int token, const std::int32_t *high, const std::int32_t *low, float *acc) {
    const std::ptrdiff_t at = std::ptrdiff_t{token} * (x.stride / kColumns) + b;
    for (int r = 0; r < kRows; ++r) {
        const std::int32_t sum = high[r] * 256 + low[r] - x.sums[at];
        acc[r] += static_cast<float>(sum) * (scales[r][b] * x.scales[at]);
    }
}

// Tn / 2 tokens, whose blocks are unpacked in registers.
template <int Tn>
inline void few_block_tokens(const Ternary &w, const BlockActivations &x, int token,
                             const std::uint8_t *packed, const float (*scales)[kMaxBlocks],
                             float (*acc)[kRows]) {
    for (int b = 0; b < w.blocks(); ++b) {
        const std::int8_t *codes =
            x.codes + std::ptrdiff_t{2} * token * x.stride + std::ptrdiff_t{b} * kColumns;
        const std::uint8_t *block = packed + std::ptrdiff_t{b} * kBlockBytes;
        std::int32_t sums[Tn][kRows];
        for_vectors<Tn>(sums, [&](int v, std::int32_t *part) {
            tile<vectors_for<Tn>(), Tn>(block + v * Int8::kBytes, 1, codes, x.stride, part);
        });
        for (int t = 0; t < Tn; ++t)
            for (int r = 0; r < kRows; ++r) sums[t][r] >>= 2;
        for (int t = 0; t < Tn / 2; ++t)
            add_block(x, scales, b, token + t, sums[2 * t], sums[2 * t + 1], acc[t]);
    }
}

constexpr int kBlockTokens = 128; // whose sums are kept at once
static_assert(sizeof(float) * kRows * (kMaxBlocks + kBlockTokens) + kRows * kColumns <=
              kScratchBytes);

// Many tokens: a block is unpacked to bytes once for all of them.
inline void many_block_tokens(const Ternary &w, const BlockActivations &x, int token, int tokens,
                              const std::uint8_t *packed, const float (*scales)[kMaxBlocks],
                              std::uint8_t *panel, float (*acc)[kRows]) {
    constexpr int R = Int8::kTileRows, kTile = Int8::kTileTokens;
    static_assert(kTile % 2 == 0);
    for (int b = 0; b < w.blocks(); ++b) {
        unpack_group(packed + std::ptrdiff_t{b} * kBlockBytes, 1, panel);
        for (int t = 0; t < tokens; t += kTile / 2) {
            const int count = min_of(kTile / 2, tokens - t);
            const std::int8_t *codes =
                x.codes + std::ptrdiff_t{2} * (token + t) * x.stride + std::ptrdiff_t{b} * kColumns;
            std::int32_t sums[kRows / R][(kTile + kRows) * R] = {}; // a tile may write one more
            for (int part = 0; part < kRows / R; ++part)
                panel_tokens(panel + part * R * Int8::kBytes, kColumns / Int8::kBytes, codes,
                             x.stride, 2 * count, sums[part]);
            for (int i = 0; i < count; ++i) {
                std::int32_t high[kRows], low[kRows];
                for (int r = 0; r < kRows; ++r) {
                    high[r] = sums[r / R][2 * i * R + r % R];
                    low[r] = sums[r / R][(2 * i + 1) * R + r % R];
                }
                add_block(x, scales, b, token + t + i, high, low, acc[t + i]);
            }
        }
    }
}

inline void linear_blocks(const Ternary &w, const BlockActivations &x, int group_begin,
                          int group_end, float *out, int out_stride, bool accumulate,
                          void *scratch) {
    float (*scales)[kMaxBlocks] = static_cast<float (*)[kMaxBlocks]>(scratch);
    float (*acc)[kRows] = reinterpret_cast<float (*)[kRows]>(scales + kRows);
    std::uint8_t *panel = reinterpret_cast<std::uint8_t *>(acc + kBlockTokens);
    for (int group = group_begin; group < group_end; ++group) {
        const int rows = min_of(kRows, w.rows - group * kRows);
        const std::uint8_t *packed = w.packed + std::ptrdiff_t{group} * w.blocks() * kBlockBytes;
        for (int r = 0; r < rows; ++r) load_scales(w.block_scales, group * kRows + r, scales[r]);
        for (int token = 0; token < x.tokens; token += kBlockTokens) {
            const int tokens = min_of(kBlockTokens, x.tokens - token);
            for (int t = 0; t < tokens; ++t)
                for (int r = 0; r < kRows; ++r) acc[t][r] = 0;
            if (x.tokens > kStreamTokens / 2) {
                many_block_tokens(w, x, token, tokens, packed, scales, panel, acc);
            } else {
                int t = 0;
                for (; t + 2 <= tokens; t += 2)
                    few_block_tokens<4>(w, x, token + t, packed, scales, acc + t);
                if (t < tokens) few_block_tokens<2>(w, x, token + t, packed, scales, acc + t);
            }
            for (int t = 0; t < tokens; ++t) {
                float *y = out + std::ptrdiff_t{token + t} * out_stride + group * kRows;
                for (int r = 0; r < rows; ++r) y[r] = accumulate ? y[r] + acc[t][r] : acc[t][r];
            }
        }
    }
}

inline void embed_blocks(const Ternary &table, int row, float *out) {
    const std::uint8_t *packed = table.packed +
                                 std::ptrdiff_t{row / kRows} * table.blocks() * kBlockBytes +
                                 row % kRows * 32;
    float scales[kMaxBlocks];
    load_scales(table.block_scales, row, scales);
    for (int i = 0; i < table.columns; ++i) {
        const std::uint8_t byte = packed[i / kColumns * kBlockBytes + i % 32];
        const int code = byte >> 2 * (i % kColumns / 32) & 3;
        out[i] = static_cast<float>(code - 1) * scales[i / kColumns];
    }
}
