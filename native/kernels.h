// The table of kernels that every instruction set fills, and the plain structs they share.
//
// Shapes: T tokens, N rows (outputs), K columns (inputs). Float vectors that kernels read or write
// are padded with zeros to a multiple of kFloatPad floats; int8 activations to padded_columns().
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trilobit {

inline constexpr int kRows = 16;          // rows interleaved in a packed block
inline constexpr int kBlockBytes = 64;    // of a packed block: 4 bytes a row
inline constexpr int kLinePad = 64;       // bytes of a row or column that lies alone: cache lines
inline constexpr int kScaleColumns = 128; // of a row that share a scale, where groups have scales
inline constexpr int kScreenPad = 64;     // columns of the screen are padded to a multiple
inline constexpr int kFloatPad = 16;
inline constexpr int kKvBlock = 32;    // positions of one KV block
inline constexpr int kSpan = 512;      // keys whose softmax is summed before spans are merged
inline constexpr int kMaxQueries = 32; // queries that share one pass over the keys

constexpr int round_up(int value, int multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// How ternary codes lie in bytes: docs/format.md.
enum class Layout : std::uint8_t {
    two_bit, // "2-bit"
    base3,   // "1.6-bit": digits of base 3
};

// Codes of a byte.
constexpr int places_of(Layout layout) { return layout == Layout::two_bit ? 4 : 5; }

inline constexpr int kMostPlaces = 5;

// Columns of a packed block.
constexpr int block_columns_of(Layout layout) { return 4 * places_of(layout); }

// Columns of activations, so many that a block of either layout ends within them.
constexpr int padded_columns(int columns) {
    const int two_bit = round_up(columns, block_columns_of(Layout::two_bit)),
              base3 = round_up(columns, block_columns_of(Layout::base3));
    return two_bit > base3 ? two_bit : base3;
}

// How the bytes of a ternary matrix follow each other. groups: sixteen rows together, block by
// block, for products with all of it. rows, columns: one whole row or column behind the other, each
// with its own blocks, so that those which count for nothing need not be read.
enum class Order : std::uint8_t { groups, rows, columns };

enum class Float : std::uint8_t { f32, f16, bf16 };

enum class Activation : std::uint8_t { relu2, silu, gelu_tanh };

constexpr int size_of(Float type) { return type == Float::f32 ? 4 : 2; }

// What keys and values are kept as. i8: codes of -127 to 127, and a float32 scale for each position
// behind the codes of a block.
enum class KvType : std::uint8_t { f32, f16, i8 };

// Of the keys or the values of one head.
constexpr int kv_block_bytes(KvType type, int head_dim) {
    if (type == KvType::i8) return kKvBlock * (head_dim + 4);
    return kKvBlock * head_dim * (type == KvType::f32 ? 4 : 2);
}

// A float matrix [rows, columns] as it lies in the file.
struct Dense {
    const void *data;
    Float type;
    int rows;
    int columns;
};

// A ternary matrix [rows, columns] in the packed layout of docs/format.md. A weight's scale is
// scales[row * scale_step], or one of `group_scales` where they are given.
struct Ternary {
    const std::uint8_t *packed;
    const float *scales;
    int scale_step; // 0: one for the matrix
    int rows;
    int columns;
    Layout layout = Layout::two_bit;
    Dense group_scales{}; // [rows, scale_groups()]; in the 2-bit layout and in groups only
    Order order = Order::groups;

    int groups() const { return (rows + kRows - 1) / kRows; }
    int block_columns() const { return block_columns_of(layout); }
    int blocks() const { return (columns + block_columns() - 1) / block_columns(); }
    // Where rows or columns lie one behind the other: how many, and the bytes of one.
    int lines() const { return order == Order::columns ? columns : rows; }
    int line_bytes() const {
        const int along = order == Order::columns ? rows : columns;
        return round_up((along + block_columns() - 1) / block_columns() * 4, kLinePad);
    }
    int line_codes() const { return line_bytes() * places_of(layout); } // with the padding
    const std::uint8_t *line(int n) const { return packed + std::ptrdiff_t{n} * line_bytes(); }
    std::size_t bytes() const {
        if (order != Order::groups)
            return static_cast<std::size_t>(lines()) * static_cast<std::size_t>(line_bytes());
        return static_cast<std::size_t>(groups()) * static_cast<std::size_t>(blocks()) *
               kBlockBytes;
    }
    int scale_groups() const { return (columns + kScaleColumns - 1) / kScaleColumns; }
};

// Two bits of every weight of the head, rotated, in the packed layout of model/screen.py. A code of
// 0 to 3 means code - 1.5, times the scale of the row.
struct Plane {
    Ternary matrix;         // as if codes were ternary; its columns are padded to kScreenPad
    const float *residuals; // [rows]: norm of what is missed still
};

// A copy of the head: coarse + fine.
struct Screen {
    Plane coarse; // in groups: all of it is read
    Plane fine;   // in rows: those are read that the coarse plane leaves in doubt
    int block;    // columns of a Hadamard block
};

// Up to where a row's exact score may lie above the approximate one of a plane: the weighted sum
// of its residual and its scale, by the temperature; and the score that counts.
struct Reach {
    float residual_weight, scale_weight;
    float inverse_temperature;
    float bound;
};

// Int8 activations of T tokens, zero beyond K; x ≈ codes * scales[t]. Tokens that a kernel takes
// together make a tile, in which they lie four codes each in turn: [tile][columns / 4][token][4].
struct Activations {
    std::int8_t *codes;
    float *scales;
    std::int32_t *sums; // sum of a token's codes
    int tokens;
    int columns; // padded
    int tile;    // tokens of a tile, but for a smaller last one

    int tokens_beside(int t) const {
        const int left = tokens - t / tile * tile;
        return left < tile ? left : tile;
    }
    // The first four codes of a token; the next four stand 4 * tokens_beside(t) bytes further.
    std::int8_t *first(int t) const {
        return codes + std::ptrdiff_t{t / tile * tile} * columns + t % tile * 4;
    }
};

// Activations of 16 bits with a scale for every kScaleColumns: two int8 of which the first counts
// 256 times, as if they were two tokens: `bytes` has 2 T tokens, in tiles of an even number, and
// scales and sums are [T, columns / kScaleColumns].
struct WideActivations {
    Activations bytes;

    int tokens() const { return bytes.tokens / 2; }
    int groups() const { return bytes.columns / kScaleColumns; }
};

// One pass of up to kMaxQueries queries of one KV head over one span of keys.
struct AttentionSpan {
    const float *const *queries; // each [head_dim], scaled by 1/sqrt(head_dim)
    const int *first;            // keys of this span before which each query sees none; may be ≤ 0
    const int *visible;          // keys of this span that each query may see; may be ≤ 0
    int query_count;
    const void *const *keys;   // a block: [head_dim, kKvBlock]
    const void *const *values; // a block: [kKvBlock, head_dim]
    int head_dim;              // padded to kFloatPad
    float *maximum;            // [query_count] out: largest score
    float *sum;                // [query_count] out: sum of exp(score - maximum)
    float *weighted;           // [query_count, head_dim] out: sum of exp(...) * value
    float *scratch;            // [kKvBlock, head_dim]
};

struct Kernels {
    const char *name;

    // out[t * out_stride + row] (+)= x[t] · w[row] for the rows of [group_begin, group_end).
    void (*linear)(const Ternary &w, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride, bool accumulate, void *scratch);
    // The same where groups of columns have scales.
    void (*linear_groups)(const Ternary &w, const WideActivations &x, int group_begin,
                          int group_end, float *out, int out_stride, bool accumulate,
                          void *scratch);
    // gate[row] = relu(gate[row])² * (x[t] · w[row]) for the rows of [begin, end), of a matrix in
    // rows. Those whose gate is not positive are not read. spread: of x[t].
    void (*gated_rows)(const Ternary &w, const Activations &x, int t, const std::int8_t *spread,
                       int begin, int end, float *gate, void *scratch);
    // The codes of token t in the order in which `gated_rows` meets them, [w.line_codes()].
    void (*spread)(const Ternary &w, const Activations &x, int t, std::int8_t *out);
    // sums[row] += Σ code·a of the columns of [begin, end), of a matrix in columns. Those where a
    // is zero are not read. sums: [w.line_codes()].
    void (*add_columns)(const Ternary &w, const Activations &x, int t, int begin, int end,
                        std::int32_t *sums, void *scratch);
    // out[row] (+)= what `linear` writes for token t, from `parts` such sums, `apart` from each
    // other, which are cleared.
    void (*settle)(const Ternary &w, const Activations &x, int t, std::int32_t *sums,
                   std::ptrdiff_t apart, int parts, int group_begin, int group_end, float *out,
                   int out_stride, bool accumulate);
    // Tokens of a tile of `linear`, of so many in all; of `linear_groups`.
    int (*tile_tokens)(int tokens);
    int (*wide_tile_tokens)(int tokens);
    // RMSNorm with gain, or nothing where that is null, then absmax int8 codes of token t of `out`.
    void (*norm_quantise)(const float *x, const float *gain, int n, float eps,
                          const Activations &out, int t);
    // 16-bit codes of token t of `out`.
    void (*quantise_groups)(const float *x, int n, const WideActivations &out, int t);
    void (*norm)(const float *x, const float *gain, int n, float eps, float *out);
    // gate[i] = act(gate[i]) * up[i]
    void (*gate)(Activation act, float *gate, const float *up, int n);
    // Rotate the pairs (i, i + half) of one head.
    void (*rope)(const float *x, const float *cos, const float *sin, int half, float *out);
    void (*embed)(const Dense &table, int row, float *out);
    void (*embed_groups)(const Ternary &table, int row, float *out);
    // out[t * out_stride + row] = x[t] · w[row] for the rows of [row_begin, row_end).
    void (*dense)(const Dense &w, int row_begin, int row_end, const float *x, int x_stride,
                  int tokens, float *out, int out_stride);
    // Put one position of one head into its KV block; whether it had to be cut to what float16
    // holds.
    bool (*store_key)(const float *key, int head_dim, void *block, int slot, KvType type);
    bool (*store_value)(const float *value, int head_dim, void *block, int slot, KvType type);
    void (*attend)(const AttentionSpan &span, KvType type);
    // Fold a span's result into the running (maximum, sum, weighted) of one query.
    void (*merge)(float *maximum, float *sum, float *weighted, float span_maximum, float span_sum,
                  const float *span_weighted, int head_dim);
    // out = weighted / sum
    void (*finish)(const float *weighted, float sum, int head_dim, float *out);
    // Rotate x [n] into out [padded] by signs and Hadamard blocks.
    void (*rotate)(const float *x, const float *signs, int n, int padded, int block, float *out);
    // out[t * out_stride + row] = x[t] · row of the coarse plane of a screen, for the rows of
    // [group_begin, group_end). The sums of x are 3/2 of those of its codes.
    void (*coarse)(const Ternary &plane, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride);
    // scores[row] += factor * (x[t] · row of the fine plane), for `count` rows. spread: of x[t].
    void (*fine)(const Ternary &plane, const Activations &x, int t, const std::int8_t *spread,
                 const std::int32_t *rows, int count, float factor, float *scores);
    // The index of the largest of n scores, the first of equals; -1 where all are -∞.
    int (*largest)(const float *scores, int n);
    // The rows of [begin, end) that may reach the bound, in order; returns how many.
    int (*reaching)(const Plane &plane, const Reach &reach, const float *scores, int begin, int end,
                    std::int32_t *out);
    // Standard Gumbel noise of the tokens [first, first + count).
    void (*gumbel)(std::uint32_t key, int first, int count, float *out);
    // The machine's limits: read `bytes` (a multiple of 1024) once; do `rounds` rounds of u8 × s8
    // products, return the number of multiply-adds of a round.
    std::uint64_t (*read)(const void *data, std::size_t bytes);
    int (*multiply)(int rounds, std::int32_t *sink);
    // About what a core does from its cache, to judge what work is worth sharing: ternary products,
    // and eighths of the work on a float.
    double products_per_ns;
    // The share of rows or columns from which on a pass over all of them takes many tokens sooner
    // than one over each token's own, by layout.
    double mostly[2];

    // Taking the codes apart for all tokens costs what so many tokens' products do.
    static constexpr double kTakenApart = 8;
    bool all_is_faster(Layout layout, double share, int tokens) const {
        return tokens > 1 && share > mostly[static_cast<int>(layout)] * (1 + kTakenApart / tokens);
    }

    double ns_of_products(double count) const { return count / products_per_ns; }
    double ns_of_floats(double count) const { return 8 * count / products_per_ns; }
};

inline constexpr std::size_t kScratchBytes = std::size_t{1} << 19; // a thread's, for `linear`

} // namespace trilobit
