// Ternary matrix times int8 activations: y = (Σ code·a − Σ a) · (weight scale · activation scale).
//
// Few tokens: each packed block is unpacked in registers and meets every token at once; a thread
// streams its rows linearly, so memory is the limit. Many tokens: a panel of rows is unpacked to
// bytes once and multiplied with all tokens from cache, so arithmetic is the limit. The integers
// are exact, so both give the same bits.

constexpr int min_of(int a, int b) { return a < b ? a : b; }

// ---- few tokens -------------------------------------------------------------------------------

// Sums of the rows in W vectors of int32 lanes, eight lanes a row, in their order.
template <int W> inline void row_sums(const Int8::Wide (&wide)[W], std::int32_t *sums) {
    constexpr int kStep = Int8::kVectorsPerRows; // that hold kRows rows
    TRILOBIT_UNROLL
    for (int w = 0; w < W; w += kStep) {
        Int8::Wide part[kStep];
        TRILOBIT_UNROLL
        for (int i = 0; i < kStep; ++i) part[i] = w + i < W ? wide[w + i] : Int8::zero_wide();
        Int8::sum_rows(part, sums + w / kStep * kRows);
    }
}

// Dot products of V vectors of a row group (V * kBytes bytes of each block) with Tn tokens:
// sums[t][row of the V vectors] = 4 * Σ code·a
template <int V, int Tn>
TRILOBIT_NOINLINE void tile(const std::uint8_t *w, int blocks, const std::int8_t *x, std::ptrdiff_t stride,
                 std::int32_t *sums) {
    constexpr int kBytes = Int8::kBytes;
    Int8::Wide wide[Tn * V];
    TRILOBIT_UNROLL
    for (int t = 0; t < Tn; ++t)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) wide[t * V + v] = Int8::zero_wide();
    for (int b = 0; b < blocks;) {
        const int end = blocks - b > Int8::kBlocksPerWiden ? b + Int8::kBlocksPerWiden : blocks;
        Int8::Acc ones[Tn][V], fours[Tn][V];
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) ones[t][v] = fours[t][v] = Int8::zero();
        for (; b < end; ++b) {
            const std::uint8_t *block = w + std::ptrdiff_t{b} * kBlockBytes;
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) {
                const Int8::Vec low = Int8::load(block + v * kBytes);
                const Int8::Vec high = Int8::upper(low);
                TRILOBIT_UNROLL
                for (int t = 0; t < Tn; ++t) {
                    // A vector narrower than a row's 32 bytes starts inside them.
                    const std::int8_t *a = x + t * stride + b * kColumns + v * kBytes % 32;
                    ones[t][v] = Int8::dot(ones[t][v], Int8::ones(low), Int8::activations(a));
                    fours[t][v] =
                        Int8::dot(fours[t][v], Int8::fours(low), Int8::activations(a + 32));
                    ones[t][v] = Int8::dot(ones[t][v], Int8::ones(high), Int8::activations(a + 64));
                    fours[t][v] =
                        Int8::dot(fours[t][v], Int8::fours(high), Int8::activations(a + 96));
                    Int8::keep(ones[t][v]);
                    Int8::keep(fours[t][v]);
                }
            }
        }
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v)
                wide[t * V + v] = Int8::widen(wide[t * V + v], ones[t][v], fours[t][v]);
    }
    row_sums(wide, sums);
}

template <int Tn> constexpr int vectors_for() {
    return min_of(kBlockBytes / Int8::kBytes, Int8::kTileVectors / (Tn == 3 ? 4 : Tn));
}

// Call multiply(first vector, sums) for the vectors of a row group, as many at a time as the
// registers hold for Tn tokens, and gather sums[t][r].
template <int Tn, typename Multiply>
inline void for_vectors(std::int32_t (*sums)[kRows], Multiply multiply) {
    constexpr int kVectors = kBlockBytes / Int8::kBytes;
    constexpr int V = vectors_for<Tn>(), kPart = V * Int8::kBytes / 32; // rows of V vectors
    TRILOBIT_UNROLL
    for (int v = 0; v < kVectors; v += V) {
        std::int32_t part[(Tn * kPart + kRows - 1) / kRows * kRows];
        multiply(v, part);
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t)
            TRILOBIT_UNROLL
            for (int r = 0; r < kPart; ++r)
                sums[t][v * Int8::kBytes / 32 + r] = part[t * kPart + r];
    }
}

inline void write_rows(const Ternary &w, const Activations &x, int group, int token,
                       const std::int32_t *sums, float *out, int out_stride, bool accumulate) {
    const float *scales = w.scales + std::ptrdiff_t{group} * kRows * w.scale_step;
    float *y = out + std::ptrdiff_t{token} * out_stride + std::ptrdiff_t{group} * kRows;
    const int rows = min_of(kRows, w.rows - group * kRows);
    for (int r = 0; r < rows; ++r) {
        const float scale = x.scales[token] * scales[r * w.scale_step];
        const float value = static_cast<float>(sums[r] - x.sums[token]) * scale;
        y[r] = accumulate ? y[r] + value : value;
    }
}

template <int Tn>
inline void few_tokens(const Ternary &w, const Activations &x, int token, int group, float *out,
                       int out_stride, bool accumulate) {
    const int blocks = w.blocks();
    const std::uint8_t *packed = w.packed + std::ptrdiff_t{group} * blocks * kBlockBytes;
    std::int32_t sums[Tn][kRows];
    const std::int8_t *codes = x.codes + std::ptrdiff_t{token} * x.stride;
    for_vectors<Tn>(sums, [&](int v, std::int32_t *part) {
        tile<vectors_for<Tn>(), Tn>(packed + v * Int8::kBytes, blocks, codes, x.stride, part);
    });
    TRILOBIT_UNROLL
    for (int t = 0; t < Tn; ++t) {
        TRILOBIT_UNROLL
        for (int r = 0; r < kRows; ++r) sums[t][r] >>= 2;
        write_rows(w, x, group, token + t, sums[t], out, out_stride, accumulate);
    }
}

inline void stream(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate) {
    // Tiles of about equal size: 8 tokens as 3, 3 and 2 where 3 go at once.
    const int tiles = (x.tokens + Int8::kStreamTokens - 1) / Int8::kStreamTokens;
    for (int group = group_begin; group < group_end; ++group)
        for (int tile = 0, t = 0; tile < tiles; ++tile) {
            const int tokens = (x.tokens - t + tiles - tile - 1) / (tiles - tile);
            switch (tokens) {
            case 1: few_tokens<1>(w, x, t, group, out, out_stride, accumulate); break;
            case 2: few_tokens<2>(w, x, t, group, out, out_stride, accumulate); break;
            case 3: few_tokens<3>(w, x, t, group, out, out_stride, accumulate); break;
            default: few_tokens<4>(w, x, t, group, out, out_stride, accumulate);
            }
            t += tokens;
        }
}

// ---- many tokens ------------------------------------------------------------------------------

constexpr int kPanelGroups = 12;    // 48 rows × 2048 columns = 96 KB: a quarter of an L2 cache
constexpr int kPanelColumns = 2048; // 64 pairs of 2 * 2 * 128 = 512 reach -32768: int16 just holds
constexpr int kPanelTokens = 192;
static_assert(kPanelGroups * kRows * (kPanelColumns + (kPanelTokens + 1) * 4) <= kScratchBytes);

// Unpack one row group: panel[column / kBytes][row][kBytes], one code a byte.
inline void unpack_group(const std::uint8_t *w, int blocks, std::uint8_t *panel) {
    constexpr int kBytes = Int8::kBytes;
    constexpr int kPiece = min_of(kBytes, 32); // bytes of a row that lie together in the panel
    for (int b = 0; b < blocks; ++b)
        TRILOBIT_UNROLL
        for (int r = 0; r < kRows; ++r)
            TRILOBIT_UNROLL
            for (int part = 0; part < 32; part += kPiece) {
                const auto place = [&](int quarter) {
                    const int column = b * kColumns + quarter * 32 + part;
                    return panel + (column / kBytes * kRows + r) * kBytes + column % kBytes;
                };
                Int8::unpack(w + std::ptrdiff_t{b} * kBlockBytes + r * 32 + part, place(0),
                             place(1), place(2), place(3));
            }
}

// Dot products of kTileRows rows of a group's panel with Tn tokens, all in registers:
// sums[t][row] += Σ code·a
template <int Tn>
inline void panel_tile(const std::uint8_t *panel, int vectors, const std::int8_t *x,
                       std::ptrdiff_t stride, std::int32_t *sums) {
    constexpr int kBytes = Int8::kBytes, R = Int8::kTileRows;
    constexpr int kTokens = kRows / R; // of which one call of add_rows takes the sums
    constexpr int kPadded = (Tn + kTokens - 1) / kTokens * kTokens;
    Int8::Acc acc[kPadded][R];
    TRILOBIT_UNROLL
    for (int t = 0; t < kPadded; ++t)
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) acc[t][r] = Int8::zero();
    for (int k = 0; k < vectors; ++k) {
        Int8::Vec codes[R];
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) codes[r] = Int8::load(panel + (k * kRows + r) * kBytes);
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t) {
            Int8::Vec a = Int8::load(x + t * stride + k * kBytes);
            Int8::keep(a); // in a register: gcc would load it once for every row
            TRILOBIT_UNROLL
            for (int r = 0; r < R; ++r) {
                acc[t][r] = Int8::dot(acc[t][r], codes[r], a);
                Int8::keep(acc[t][r]);
            }
        }
    }
    TRILOBIT_UNROLL
    for (int t = 0; t < kPadded; t += kTokens) {
        if constexpr (R == 4)
            Int8::add_rows(sums + t * R, acc[t][0], acc[t][1], acc[t][2], acc[t][3]);
        else
            Int8::add_rows(sums + t * R, acc[t][0], acc[t][1], acc[t + 1][0], acc[t + 1][1]);
    }
}

// Up to kTileTokens tokens.
static_assert(Int8::kTileTokens == 6);
inline void panel_tokens(const std::uint8_t *panel, int vectors, const std::int8_t *x,
                         std::ptrdiff_t stride, int tokens, std::int32_t *sums) {
    switch (tokens) {
    case 1: return panel_tile<1>(panel, vectors, x, stride, sums);
    case 2: return panel_tile<2>(panel, vectors, x, stride, sums);
    case 3: return panel_tile<3>(panel, vectors, x, stride, sums);
    case 4: return panel_tile<4>(panel, vectors, x, stride, sums);
    case 5: return panel_tile<5>(panel, vectors, x, stride, sums);
    default: return panel_tile<6>(panel, vectors, x, stride, sums);
    }
}

// A panel of rows is unpacked once and stays in the L2 cache; a few tokens at a time stay in the
// L1 cache while all rows of the panel pass them.
inline void panels(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate, std::uint8_t *scratch) {
    constexpr int R = Int8::kTileRows, kTile = Int8::kTileTokens;
    std::uint8_t *panel = scratch;
    // [group][row / R][token][R]
    std::int32_t *sums =
        reinterpret_cast<std::int32_t *>(scratch + kPanelGroups * kRows * kPanelColumns);
    const int blocks = w.blocks();
    for (int first = group_begin; first < group_end; first += kPanelGroups) {
        const int groups = min_of(kPanelGroups, group_end - first);
        for (int token = 0; token < x.tokens; token += kPanelTokens) {
            const int tokens = min_of(kPanelTokens, x.tokens - token);
            const int padded = tokens + kRows / R - 1; // add_rows may write one token more
            // 8 tokens are better cut into 4 and 4 than into 6 and 2.
            const int tiles = (tokens + kTile - 1) / kTile, tile = (tokens + tiles - 1) / tiles;
            for (int i = 0; i < groups * kRows * padded; ++i) sums[i] = 0;
            for (int b = 0; b < blocks; b += kPanelColumns / kColumns) {
                const int count = min_of(kPanelColumns / kColumns, blocks - b);
                const int vectors = count * kColumns / Int8::kBytes;
                for (int g = 0; g < groups; ++g)
                    unpack_group(w.packed + (std::ptrdiff_t{first + g} * blocks + b) * kBlockBytes,
                                 count, panel + g * kRows * kPanelColumns);
                const std::int8_t *codes =
                    x.codes + std::ptrdiff_t{token} * x.stride + b * kColumns;
                for (int t = 0; t < tokens; t += tile)
                    for (int part = 0; part < groups * kRows / R; ++part) {
                        const std::uint8_t *rows = panel + part * R / kRows * kRows * kPanelColumns +
                                                   part * R % kRows * Int8::kBytes;
                        panel_tokens(rows, vectors, codes + std::ptrdiff_t{t} * x.stride, x.stride,
                                     min_of(tile, tokens - t), sums + (part * padded + t) * R);
                    }
            }
            for (int g = 0; g < groups; ++g)
                for (int t = 0; t < tokens; ++t) {
                    std::int32_t rows[kRows];
                    for (int r = 0; r < kRows; ++r)
                        rows[r] = sums[((g * kRows + r) / R * padded + t) * R + r % R];
                    write_rows(w, x, first + g, token + t, rows, out, out_stride, accumulate);
                }
        }
    }
}

inline void linear(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate, void *scratch) {
    if (x.tokens <= kStreamTokens)
        stream(w, x, group_begin, group_end, out, out_stride, accumulate);
    else
        panels(w, x, group_begin, group_end, out, out_stride, accumulate,
               static_cast<std::uint8_t *>(scratch));
}
