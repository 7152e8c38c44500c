// Ternary matrix times int8 activations: y = (Σ code·a − Σ a) · (weight scale · activation scale).
//
// A block holds 16 rows, so that the lanes of a vector are rows: a step takes four columns, the
// same four activations for every lane, and no sum has to be taken across lanes. Few tokens: the
// codes are unpacked in registers and meet every token at once; a thread streams its rows linearly,
// so memory is the limit. Many tokens: a panel of rows is unpacked to bytes once and meets all
// tokens from the L1 cache, so arithmetic is the limit. The integers are exact, so both give the
// same bits.

constexpr int min_of(int a, int b) { return a < b ? a : b; }
constexpr int max_of(int a, int b) { return a > b ? a : b; }

// How far ahead a stream of weights is fetched into the L1 cache, so that activations which several
// tokens push out of it do not stop the stream.
constexpr int kAhead = 2048;

constexpr int kVectors = kBlockBytes / Int8::kBytes; // of a block
constexpr int kLanes = Int8::kBytes / 4;             // rows of a vector

// The most vectors of a block whose sums for T tokens fit into the registers.
constexpr int vectors_for(int tokens) {
    int vectors = kVectors;
    while (vectors > 1 && vectors * tokens > Int8::kAccumulators) vectors /= 2;
    return vectors;
}

inline int tile_tokens(int tokens) {
    const int most = tokens > Int8::kStreamTokens ? Int8::kPanelTileTokens : Int8::kTileTokens;
    // 8 tokens are better cut into 4 and 4 than into 6 and 2.
    const int tiles = (tokens + most - 1) / most;
    return (tokens + tiles - 1) / tiles;
}

// ---- the layouts ------------------------------------------------------------------------------

// How codes lie in the bytes of a block. Place p of a row's four bytes holds its columns 4p to
// 4p + 3; next() takes the codes of the places in their order.
template <int Steps> struct TwoBits {
    static constexpr int kPlaces = places_of(Layout::two_bit), kSteps = Steps;
    static Int8::Vec load(const void *p) { return Int8::load(p); }
    static Int8::Vec next(const Int8::Vec &bytes, int place) { return Int8::codes(bytes, place); }
};
using TwoBit = TwoBits<Int8::kSteps>;
using PlaneBits = TwoBits<Int8::kScreenSteps>; // of the screen, where the code 3 is one, too

// Five digits in base 3, as a fraction b/256 of 1: the first digit is ⌊3b/256⌋, and what is left
// of 3b, modulo 256, is the fraction of the digits behind it.
struct BaseThree {
    static constexpr int kPlaces = places_of(Layout::base3), kSteps = Int8::kSteps;
    static Int8::Vec load(const void *p) { return Int8::fractions(Int8::load(p)); }
    static Int8::Vec next(Int8::Vec &bytes, int) {
        const Int8::Vec digits = Int8::thirds(bytes);
        bytes = Int8::triple(bytes);
        return digits;
    }
};

// ---- few tokens -------------------------------------------------------------------------------

// Dot products of V vectors of a row group with a tile of T tokens: sums[t * kRows + row].
template <typename Code, int V, int T>
TRILOBIT_NOINLINE void tile(const std::uint8_t *w, int blocks, const std::int8_t *x,
                            std::int32_t *sums) {
    constexpr int kPlaces = Code::kPlaces;
    constexpr int kBlocksPerWiden = Code::kSteps / kPlaces;
    // One sum would wait for its own last product: several take turns.
    constexpr int kChains = min_of(kPlaces, max_of(1, Int8::kChains / (V * T)));
    TRILOBIT_UNROLL
    for (int t = 0; t < T; ++t)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) Int8::clear(sums + t * kRows + v * kLanes);
    for (int b = 0; b < blocks;) {
        const int end = blocks - b > kBlocksPerWiden ? b + kBlocksPerWiden : blocks;
        Int8::Acc acc[T][V][kChains];
    TRILOBIT_UNROLL
        for (int t = 0; t < T; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v)
                TRILOBIT_UNROLL
                for (int c = 0; c < kChains; ++c) acc[t][v][c] = Int8::zero();
        for (; b < end; ++b) {
            Int8::Vec bytes[V];
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) bytes[v] = Code::load(w + v * Int8::kBytes);
            TRILOBIT_UNROLL
            for (int place = 0; place < kPlaces; ++place) {
                Int8::Vec codes[V];
                TRILOBIT_UNROLL
                for (int v = 0; v < V; ++v) codes[v] = Code::next(bytes[v], place);
                TRILOBIT_UNROLL
                for (int t = 0; t < T; ++t) {
                    const Int8::Vec four = Int8::broadcast(x + (place * T + t) * 4);
                    TRILOBIT_UNROLL
                    for (int v = 0; v < V; ++v) {
                        Int8::Acc &sum = acc[t][v][place % kChains];
                        sum = Int8::dot(sum, codes[v], four);
                        Int8::keep(sum);
                    }
                }
            }
            prefetch(w + kAhead);
            w += kBlockBytes;
            x += kPlaces * T * 4;
        }
        TRILOBIT_UNROLL
        for (int t = 0; t < T; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v)
                TRILOBIT_UNROLL
                for (int c = 0; c < kChains; ++c)
                    Int8::add_to(sums + t * kRows + v * kLanes, acc[t][v][c]);
    }
}

// One vector of a row group and one token, in base 3 without taking digits apart. Let b be the
// fraction at a digit d and b' the fraction behind it: 256 d = 3 b - b', so that
//
//     256 Σ d·a = 3 Σ b·a - Σ b'·a
//
// which costs a second product for a digit and saves the five operations that find it. So many
// columns that 256 Σ d·a fits into 32 bits.
TRILOBIT_NOINLINE inline void fraction_tile(const std::uint8_t *w, int blocks, const std::int8_t *x,
                                            std::int32_t *sums) {
    constexpr int kPlaces = BaseThree::kPlaces;
    constexpr int kMostBlocks = (1 << 23) / (2 * 128 * 4 * kPlaces) - 1;
    Int8::clear(sums);
    for (int b = 0; b < blocks;) {
        const int end = blocks - b > kMostBlocks ? b + kMostBlocks : blocks;
        Int8::Acc at[kPlaces], behind[kPlaces];
    TRILOBIT_UNROLL
        for (int place = 0; place < kPlaces; ++place) at[place] = behind[place] = Int8::zero();
        for (; b < end; ++b) {
            Int8::Vec fraction = Int8::load(w);
            TRILOBIT_UNROLL
            for (int place = 0; place < kPlaces; ++place) {
                const Int8::Vec next = Int8::triple(fraction);
                const Int8::Vec four = Int8::broadcast(x + place * 4);
                at[place] = Int8::dot(at[place], fraction, four);
                behind[place] = Int8::dot(behind[place], next, four);
                Int8::keep(at[place]);
                Int8::keep(behind[place]);
                fraction = next;
            }
            prefetch(w + kAhead);
            w += kBlockBytes;
            x += kPlaces * 4;
        }
        std::int32_t sum[kLanes] = {}, rest[kLanes] = {};
        TRILOBIT_UNROLL
        for (int place = 0; place < kPlaces; ++place) {
            Int8::add_to(sum, at[place]);
            Int8::add_to(rest, behind[place]);
        }
        for (int r = 0; r < kLanes; ++r) {
            const std::uint32_t products = 3 * static_cast<std::uint32_t>(sum[r]) -
                                           static_cast<std::uint32_t>(rest[r]);
            sums[r] += static_cast<std::int32_t>(products) >> 8;
        }
    }
}

// Call write(group, sums[T * kRows]) for the row groups [begin, end) of a matrix of packed codes.
template <typename Code, int T, typename Write>
inline void for_groups(const std::uint8_t *packed, int blocks, const std::int8_t *x, int begin,
                       int end, Write write) {
    constexpr bool kFractions = Code::kPlaces == BaseThree::kPlaces && T == 1 && Int8::kFractions;
    constexpr int V = kFractions ? 1 : vectors_for(T);
    for (int group = begin; group < end; ++group) {
        const std::uint8_t *w = packed + std::ptrdiff_t{group} * blocks * kBlockBytes;
        std::int32_t sums[T * kRows];
        TRILOBIT_UNROLL
        for (int v = 0; v < kVectors; v += V) {
            if constexpr (kFractions)
                fraction_tile(w + v * Int8::kBytes, blocks, x, sums + v * kLanes);
            else
                tile<Code, V, T>(w + v * Int8::kBytes, blocks, x, sums + v * kLanes);
        }
        write(group, sums);
    }
}

// The sums of one token with a row group, scaled.
inline void write_rows(const Ternary &w, const Activations &x, int group, int token,
                       const std::int32_t *sums, float *out, int out_stride, bool accumulate) {
    const float *scales = w.scales + std::ptrdiff_t{group} * kRows * w.scale_step;
    const float x_scale = x.scales[token];
    const std::int32_t all = x.sums[token];
    float *y = out + std::ptrdiff_t{token} * out_stride + std::ptrdiff_t{group} * kRows;
    const int rows = w.rows - group * kRows;
    if (rows < kRows) { // the last few
        for (int r = 0; r < rows; ++r) {
            const float scale = x_scale * scales[r * w.scale_step];
            const float value = static_cast<float>(sums[r] - all) * scale;
            y[r] = accumulate ? y[r] + value : value;
        }
        return;
    }
    for (int r = 0; r < kRows; r += 8) {
        const F8 w_scale = w.scale_step ? load8(scales + r) : all8(*scales);
        const F8 value = mul(difference(sums + r, all), mul(all8(x_scale), w_scale));
        store8(y + r, accumulate ? add(load8(y + r), value) : value);
    }
}

template <typename Code, int T = Int8::kTileTokens>
inline void stream_tile(const Ternary &w, const Activations &x, int token, int tokens, int begin,
                        int end, float *out, int out_stride, bool accumulate) {
    if constexpr (T > 1)
        if (tokens < T)
            return stream_tile<Code, T - 1>(w, x, token, tokens, begin, end, out, out_stride,
                                             accumulate);
    for_groups<Code, T>(w.packed, w.blocks(), x.first(token), begin, end,
                     [&](int group, const std::int32_t *sums) {
                         for (int t = 0; t < T; ++t)
                             write_rows(w, x, group, token + t, sums + t * kRows, out, out_stride,
                                        accumulate);
                     });
}

template <typename Code>
inline void stream(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate) {
    // Row groups that wait in the L2 cache for all tiles of tokens
    const int most = max_of(1, (128 << 10) / (w.blocks() * kBlockBytes));
    for (int group = group_begin; group < group_end; group += most)
        for (int t = 0; t < x.tokens; t += x.tile)
            stream_tile<Code>(w, x, t, min_of(x.tile, x.tokens - t), group,
                        min_of(group + most, group_end), out, out_stride, accumulate);
}

// ---- many tokens ------------------------------------------------------------------------------

constexpr int kPanelColumns = 1024; // of a row group: 16 KB, half of an L1 cache
// Activations of 256 tokens (256 KB) and their sums with 8 row groups (128 KB) stay in an L2 cache.
constexpr int kPanelTokens = 256, kPanelGroups = 8;
constexpr int kFetched = 2; // blocks at every tile of tokens
static_assert(kRows * (2 * kPanelColumns + kPanelGroups * kPanelTokens * 4) <= kScratchBytes);

// Unpack a row group: panel[column / 4][row][column % 4], one code a byte.
template <typename Code>
inline void unpack_group(const std::uint8_t *w, int blocks, std::uint8_t *panel) {
    for (int b = 0; b < blocks; ++b)
        TRILOBIT_UNROLL
        for (int v = 0; v < kBlockBytes; v += Int8::kBytes) {
            Int8::Vec bytes = Code::load(w + b * kBlockBytes + v);
            TRILOBIT_UNROLL
            for (int place = 0; place < Code::kPlaces; ++place)
                Int8::store(panel + (b * Code::kPlaces + place) * kBlockBytes + v,
                            Code::next(bytes, place));
        }
}

// Dot products of a row group's panel with T tokens, whose next four codes stand `apart` bytes
// further: sums[t * kRows + row] += Σ code·a.
template <int T>
TRILOBIT_NOINLINE void panel_tile(const std::uint8_t *panel, int steps, const std::int8_t *x,
                                  int apart, std::int32_t *sums) {
    for (int s = 0; s < steps;) {
        const int end = steps - s > Int8::kSteps ? s + Int8::kSteps : steps;
        Int8::Acc acc[T][kVectors];
        TRILOBIT_UNROLL
        for (int t = 0; t < T; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < kVectors; ++v) acc[t][v] = Int8::zero();
        for (; s < end; ++s, panel += kBlockBytes, x += apart) {
            Int8::Vec codes[kVectors];
            TRILOBIT_UNROLL
            for (int v = 0; v < kVectors; ++v) codes[v] = Int8::load(panel + v * Int8::kBytes);
            TRILOBIT_UNROLL
            for (int t = 0; t < T; ++t) {
                Int8::Vec four = Int8::broadcast(x + t * 4);
                Int8::keep(four); // in a register: gcc would load it once for every row
                TRILOBIT_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    acc[t][v] = Int8::dot(acc[t][v], codes[v], four);
                    Int8::keep(acc[t][v]);
                }
            }
        }
        TRILOBIT_UNROLL
        for (int t = 0; t < T; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < kVectors; ++v)
                Int8::add_to(sums + t * kRows + v * kLanes, acc[t][v]);
    }
}

template <int T = Int8::kPanelTileTokens>
inline void panel_tokens(const std::uint8_t *panel, int steps, const std::int8_t *x, int apart,
                         int tokens, std::int32_t *sums) {
    if constexpr (T > 1)
        if (tokens < T) return panel_tokens<T - 1>(panel, steps, x, apart, tokens, sums);
    panel_tile<T>(panel, steps, x, apart, sums);
    if (tokens > T) panel_tokens(panel, steps, x + T * 4, apart, tokens - T, sums + T * kRows);
}

// The blocks [begin, begin + count) of a row group of a matrix in rows, as if it lay in groups; up
// to three more, which are padding of the rows.
inline void gather_group(const Ternary &w, int group, int begin, int count, std::uint8_t *out) {
    for (int r = 0; r < kRows; r += 4) {
        const std::uint8_t *rows[4];
        for (int i = 0; i < 4; ++i)
            rows[i] = w.line(min_of(group * kRows + r + i, w.rows - 1)) + begin * 4;
        for (int b = 0; b < count; b += 4) {
            Int8::gather(rows, out + b * kBlockBytes + r * 4);
            for (const std::uint8_t *&row : rows) row += 16;
        }
    }
}

template <typename Code>
inline void panels(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate, std::uint8_t *panel) {
    constexpr int kPlaces = Code::kPlaces;
    constexpr int kPanelBlocks = kPanelColumns / (4 * kPlaces) / 4 * 4; // as rows are gathered
    std::uint8_t *gathered = panel + kPanelColumns * kRows;
    std::int32_t *sums = reinterpret_cast<std::int32_t *>(gathered + kPanelColumns * kRows / 4);
    const int blocks = w.blocks(), most = max_of(1, kPanelTokens / x.tile) * x.tile;
    for (int first = group_begin; first < group_end; first += kPanelGroups) {
        const int groups = min_of(kPanelGroups, group_end - first);
        for (int token = 0; token < x.tokens; token += most) {
            const int tokens = min_of(most, x.tokens - token);
            for (int i = 0; i < groups * tokens * kRows; ++i) sums[i] = 0;
            for (int b = 0; b < blocks; b += kPanelBlocks) {
                const int count = min_of(kPanelBlocks, blocks - b);
                for (int g = 0; g < groups; ++g) {
                    const std::uint8_t *codes, *next;
                    if (w.order == Order::groups) {
                        codes = w.packed + (std::ptrdiff_t{first + g} * blocks + b) * kBlockBytes;
                        next = codes + std::ptrdiff_t{blocks} * kBlockBytes;
                    } else {
                        codes = gathered;
                        next = w.line((first + g + 1) * kRows) + b * 4;
                        gather_group(w, first + g, b, count, gathered);
                    }
                    unpack_group<Code>(codes, count, panel);
                    // The next group's codes come while these meet the tokens.
                    for (int t = 0; t < tokens; t += x.tile) {
                        const int together = min_of(x.tile, tokens - t);
                        for (int i = 0; i < kFetched; ++i) {
                            const int at = (t / x.tile * kFetched + i) % count;
                            prefetch(w.order == Order::groups
                                         ? next + at * kBlockBytes
                                         : next + at % kRows * w.line_bytes() + at / kRows * kBlockBytes);
                        }
                        panel_tokens(panel, count * kPlaces,
                                     x.codes + std::ptrdiff_t{token + t} * x.columns +
                                         b * 4 * kPlaces * together,
                                     4 * together, together, sums + (g * tokens + t) * kRows);
                    }
                }
            }
            for (int g = 0; g < groups; ++g)
                for (int t = 0; t < tokens; ++t)
                    write_rows(w, x, first + g, token + t, sums + (g * tokens + t) * kRows, out,
                               out_stride, accumulate);
        }
    }
}

constexpr int kBandColumns = 512; // of the panels of a band: 8 KB for each of its row groups

// The rows that 16 bytes of a column hold, times the 16 bytes of a vector: whole row groups.
constexpr int band_groups(int places) { return Int8::kBytes / 16 * places; }
static_assert(kRows * band_groups(kMostPlaces) * (kBandColumns + kPanelTokens * 4) <=
              kScratchBytes);

// Unpack a vector of each of the columns [begin, begin + count): panels of `band_groups` row groups.
template <typename Code>
inline void unpack_band(const Ternary &w, int band, int begin, int count, std::uint8_t *panels) {
    constexpr int kPlaces = Code::kPlaces, kPanelBytes = kBandColumns * kRows;
    for (int c = 0; c < count; c += 4) {
        Int8::Vec codes[4];
        TRILOBIT_UNROLL
        for (int i = 0; i < 4; ++i) // what lies beyond the last meets zeros
            codes[i] = Code::load(w.line(min_of(begin + c + i, w.columns - 1)) +
                                  band * Int8::kBytes);
        Int8::interleave(codes);
        Int8::Vec four[4]; // of four rows of every group: blocks of 16
        TRILOBIT_UNROLL
        for (int quarter = 0; quarter < 4; ++quarter)
            TRILOBIT_UNROLL
            for (int place = 0; place < kPlaces; ++place) {
                const int n = quarter * kPlaces + place;
                four[n % 4] = Code::next(codes[quarter], place);
                if (n % 4 == 3)
                    Int8::store_blocks(panels + n / 4 * kPanelBytes + c * kRows,
                                       kPlaces * kPanelBytes, four);
            }
    }
}

// The same of a matrix in columns.
template <typename Code>
inline void bands(const Ternary &w, const Activations &x, int group_begin, int group_end,
                  float *out, int out_stride, bool accumulate, std::uint8_t *panels) {
    constexpr int kGroups = band_groups(Code::kPlaces), kPanelBytes = kBandColumns * kRows;
    std::int32_t *sums = reinterpret_cast<std::int32_t *>(panels + kGroups * kPanelBytes);
    const int most = max_of(1, kPanelTokens / x.tile) * x.tile;
    for (int first = group_begin / kGroups * kGroups; first < group_end; first += kGroups) {
        const int from = max_of(first, group_begin), to = min_of(first + kGroups, group_end);
        for (int token = 0; token < x.tokens; token += most) {
            const int tokens = min_of(most, x.tokens - token);
            for (int i = 0; i < kGroups * tokens * kRows; ++i) sums[i] = 0;
            for (int c = 0; c < w.columns; c += kBandColumns) {
                const int count = round_up(min_of(kBandColumns, w.columns - c), 4);
                unpack_band<Code>(w, first / kGroups, c, count, panels);
                int fetched = c + kBandColumns; // come while these meet the tokens
                const int last = min_of(fetched + kBandColumns, w.columns);
                const int tiles = (to - from) * ((tokens + x.tile - 1) / x.tile);
                const int at_once = (last - fetched + tiles - 1) / tiles;
                for (int g = from; g < to; ++g)
                    for (int t = 0; t < tokens; t += x.tile) {
                        const int together = min_of(x.tile, tokens - t);
                        for (int i = 0; i < at_once && fetched < last; ++i, ++fetched)
                            prefetch(w.line(fetched) + first / kGroups * Int8::kBytes);
                        panel_tokens(panels + (g - first) * kPanelBytes, count / 4,
                                     x.codes + std::ptrdiff_t{token + t} * x.columns + c * together,
                                     4 * together, together,
                                     sums + ((g - first) * tokens + t) * kRows);
                    }
            }
            for (int g = from; g < to; ++g)
                for (int t = 0; t < tokens; ++t)
                    write_rows(w, x, g, token + t, sums + ((g - first) * tokens + t) * kRows, out,
                               out_stride, accumulate);
        }
    }
}

template <typename Code>
inline void linear_codes(const Ternary &w, const Activations &x, int group_begin, int group_end,
                         float *out, int out_stride, bool accumulate, void *scratch) {
    if (w.order == Order::columns)
        bands<Code>(w, x, group_begin, group_end, out, out_stride, accumulate,
                    static_cast<std::uint8_t *>(scratch));
    else if (w.order == Order::rows || x.tokens > Int8::kStreamTokens)
        panels<Code>(w, x, group_begin, group_end, out, out_stride, accumulate,
                     static_cast<std::uint8_t *>(scratch));
    else
        stream<Code>(w, x, group_begin, group_end, out, out_stride, accumulate);
}

inline void linear(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate, void *scratch) {
    (w.layout == Layout::two_bit ? linear_codes<TwoBit> : linear_codes<BaseThree>)(
        w, x, group_begin, group_end, out, out_stride, accumulate, scratch);
}
