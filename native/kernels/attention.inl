// Attention of queries of one KV head over one span of keys: scores, softmax, weighted values,
// block by block, keeping the running maximum. A query's numbers come from its own operations in
// the order of its keys, whatever queries share the pass, and every sum is a lane's own, so that
// they do not depend on the width of a vector either. Keys lie transposed: a vector holds one
// dimension of neighbouring positions.

constexpr float kMinusInfinity = -__builtin_huge_valf();

inline float exp1(float x) { return first_lane(exp8(all8(x))); }

template <KvType type> inline Wide load_kv(const void *block, std::ptrdiff_t i) {
    if constexpr (type == KvType::f32) return load_wide(static_cast<const float *>(block) + i);
    if constexpr (type == KvType::f16)
        return load_wide_f16(static_cast<const std::uint16_t *>(block) + i);
    if constexpr (type == KvType::i8)
        return load_wide_i8(static_cast<const std::int8_t *>(block) + i);
}

// The scales of an i8 block's positions.
inline const float *kv_scales(const void *block, int head_dim) {
    return reinterpret_cast<const float *>(static_cast<const std::int8_t *>(block) +
                                           head_dim * kKvBlock);
}

// Elements [i, i + count) of a block that comes next: blocks lie in pages of their own, so that the
// machine does not foresee them.
template <KvType type> inline void prefetch_kv(const void *block, std::ptrdiff_t i, int count) {
    constexpr int kSize = type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1, kLine = 64;
    for (int byte = 0; byte < count * kSize; byte += kLine)
        prefetch(static_cast<const char *>(block) + i * kSize + byte);
}

// A block's codes as floats, for many queries.
template <KvType type>
inline void widen(const void *block, const void *next, int elements, float *out) {
    for (int i = 0; i < elements; i += kWide) {
        store_wide(out + i, load_kv<type>(block, i));
        prefetch_kv<type>(next, i, kWide);
    }
}

// scores[q][position] of V vectors of positions, Q queries
template <KvType type, int Q, int V>
TRILOBIT_NOINLINE void score(const void *keys, const void *next, int first, int head_dim,
                             const float *const *queries, float (*scores)[kKvBlock]) {
    Wide sum[Q][V];
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) sum[q][v] = all_wide(0);
    for (int d = 0; d < head_dim; ++d) {
        Wide key[V];
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) key[v] = load_kv<type>(keys, d * kKvBlock + first + v * kWide);
        prefetch_kv<type>(next, d * kKvBlock + first, V * kWide);
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            Wide x = all_wide(queries[q][d]);
            keep(x);
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) {
                sum[q][v] = fma(x, key[v], sum[q][v]);
                keep(sum[q][v]);
            }
        }
    }
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) store_wide(scores[q] + first + v * kWide, sum[q][v]);
}

// The same for the first `positions` positions, at least.
template <KvType type, int Q>
inline void score_block(const void *keys, const void *next, int positions, int head_dim,
                        const float *const *queries, float (*scores)[kKvBlock]) {
    int first = 0;
    for (; first + kWide < positions; first += 2 * kWide)
        score<type, Q, 2>(keys, next, first, head_dim, queries, scores);
    if (first < positions) score<type, Q, 1>(keys, next, first, head_dim, queries, scores);
}

// weighted[q] = weighted[q] * shrink[q] + Σ p[q][position] * value[position] over the first
// `positions`, V vectors of dimensions from d on
template <KvType type, int Q, int V>
TRILOBIT_NOINLINE void weigh(const void *values, const void *next, int positions, int d,
                             int head_dim, const float (*p)[kKvBlock], const float *shrink,
                             float *weighted) {
    Wide sum[Q][V];
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v)
            sum[q][v] = mul(load_wide(weighted + std::ptrdiff_t{q} * head_dim + d + v * kWide),
                            all_wide(shrink[q]));
    for (int j = 0; j < positions; ++j) {
        Wide value[V];
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) value[v] = load_kv<type>(values, j * head_dim + d + v * kWide);
        prefetch_kv<type>(next, d * kKvBlock + j * V * kWide, V * kWide);
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            Wide x = all_wide(p[q][j]);
            keep(x);
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) {
                sum[q][v] = fma(x, value[v], sum[q][v]);
                keep(sum[q][v]);
            }
        }
    }
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v)
            store_wide(weighted + std::ptrdiff_t{q} * head_dim + d + v * kWide, sum[q][v]);
}

template <KvType type, int Q>
inline void weigh_block(const void *values, const void *next, int positions, int head_dim,
                        const float (*p)[kKvBlock], const float *shrink, float *weighted) {
    int d = 0;
    for (; d + kWide < head_dim; d += 2 * kWide)
        weigh<type, Q, 2>(values, next, positions, d, head_dim, p, shrink, weighted);
    if (d < head_dim)
        weigh<type, Q, 1>(values, next, positions, d, head_dim, p, shrink, weighted);
}

// Turn the scores of a block that begins at `key` into exp(score - maximum); what a query does not
// see weighs exactly nothing. shrink: what earlier sums must be multiplied with.
// scales: of the keys, or null.
inline void soften(const AttentionSpan &s, int key, const float *scales,
                   float (*scores)[kKvBlock], float *shrink) {
    const auto seen = [&](int q) { return min_of(s.visible[q] - key, kKvBlock); };
    const auto skipped = [&](int q) { return max_of(s.first[q] - key, 0); };
    for (int q = 0; q < s.query_count; ++q) {
        float *p = scores[q];
        const int from = skipped(q), end = seen(q);
        shrink[q] = 0; // its logarithm
        if (end <= from) continue;
        if (scales)
            for (int j = 0; j < kKvBlock; j += 8) store8(p + j, mul(load8(p + j), load8(scales + j)));
        for (int j = 0; j < from; ++j) p[j] = kMinusInfinity;
        for (int j = end; j < kKvBlock; ++j) p[j] = kMinusInfinity;
        F8 largest = all8(s.maximum[q]);
        for (int j = 0; j < kKvBlock; j += 8) largest = max(largest, load8(p + j));
        const float top = max_lanes(largest);
        if (top != s.maximum[q]) shrink[q] = s.maximum[q] - top;
        s.maximum[q] = top;
    }
    for (int q = s.query_count; q < round_up(s.query_count, 8); ++q) shrink[q] = 0;
    for (int q = 0; q < s.query_count; q += 8) store8(shrink + q, exp8(load8(shrink + q)));
    for (int q = 0; q < s.query_count; ++q) {
        float *p = scores[q];
        const int from = skipped(q), end = seen(q);
        if (end <= from) {
            for (int j = 0; j < kKvBlock; ++j) p[j] = 0;
            continue;
        }
        const Wide top = all_wide(s.maximum[q]);
        for (int j = 0; j < kKvBlock; j += kWide)
            store_wide(p + j, exp_wide(sub(load_wide(p + j), top)));
        for (int j = 0; j < from; ++j) p[j] = 0;
        for (int j = end; j < kKvBlock; ++j) p[j] = 0;
        F8 sum = all8(0);
        for (int j = 0; j < kKvBlock; j += 8) sum = add(sum, load8(p + j));
        s.sum[q] = s.sum[q] * shrink[q] + sum_lanes(sum);
    }
}

template <int Q> struct Tile {};

// Call f(Tile<Q>, first query) for the queries [q, count) in tiles as large as may be.
template <int Q = kTileQueries, typename F> inline void each_tile(int q, int count, F f) {
    for (; q + Q <= count; q += Q) f(Tile<Q>{}, q);
    if constexpr (Q > 1) each_tile<Q / 2>(q, count, f);
}

template <KvType type, int Q>
inline void score_tile(Tile<Q>, const AttentionSpan &s, const void *keys, const void *next, int key,
                       int q, float (*scores)[kKvBlock]) {
    int positions = 0;
    for (int i = q; i < q + Q; ++i) positions = max_of(positions, s.visible[i] - key);
    score_block<type, Q>(keys, next, min_of(positions, kKvBlock), s.head_dim, s.queries + q,
                         scores + q);
}

template <KvType type, int Q>
inline void weigh_tile(Tile<Q>, const AttentionSpan &s, const void *values, const void *next,
                       int key, int q, const float (*p)[kKvBlock], const float *shrink) {
    int positions = 0;
    for (int i = q; i < q + Q; ++i) positions = max_of(positions, s.visible[i] - key);
    if (positions > 0)
        weigh_block<type, Q>(values, next, min_of(positions, kKvBlock), s.head_dim, p + q,
                             shrink + q, s.weighted + std::ptrdiff_t{q} * s.head_dim);
}

template <KvType type> inline void attend_as(const AttentionSpan &s) {
    int keys = 0, unseen = kSpan; // no query sees a key before that
    for (int q = 0; q < s.query_count; ++q) {
        keys = max_of(keys, s.visible[q]);
        unseen = min_of(unseen, max_of(s.first[q], 0));
        s.maximum[q] = kMinusInfinity;
        s.sum[q] = 0;
    }
    for (int i = 0; i < s.query_count * s.head_dim; ++i) s.weighted[i] = 0;
    // Several tiles share what it costs to turn a block into floats.
    const bool wide = type != KvType::f32 && s.query_count > kTileQueries;
    float scores[kMaxQueries][kKvBlock], shrink[kMaxQueries];
    for (int key = unseen / kKvBlock * kKvBlock; key < keys; key += kKvBlock) {
        const int now = key / kKvBlock, next = key + kKvBlock < keys ? now + 1 : now;
        const void *block = s.keys[now], *after = s.keys[next];
        const int elements = kKvBlock * s.head_dim;
        if (wide) {
            widen<type>(block, after, elements, s.scratch);
            each_tile(0, s.query_count, [&](auto tile, int q) {
                score_tile<KvType::f32>(tile, s, s.scratch, s.scratch, key, q, scores);
            });
        } else {
            each_tile(0, s.query_count, [&](auto tile, int q) {
                score_tile<type>(tile, s, block, after, key, q, scores);
            });
        }
        soften(s, key, type == KvType::i8 ? kv_scales(block, s.head_dim) : nullptr, scores, shrink);
        block = s.values[now];
        after = s.values[next];
        if constexpr (type == KvType::i8) // a value's scale goes into its weight
            for (int q = 0; q < s.query_count; ++q)
                for (int j = 0; j < kKvBlock; j += 8)
                    store8(scores[q] + j,
                           mul(load8(scores[q] + j), load8(kv_scales(block, s.head_dim) + j)));
        if (wide) {
            widen<type>(block, after, elements, s.scratch);
            each_tile(0, s.query_count, [&](auto tile, int q) {
                weigh_tile<KvType::f32>(tile, s, s.scratch, s.scratch, key, q, scores, shrink);
            });
        } else {
            each_tile(0, s.query_count, [&](auto tile, int q) {
                weigh_tile<type>(tile, s, block, after, key, q, scores, shrink);
            });
        }
    }
}

inline void attend(const AttentionSpan &s, KvType type) {
    switch (type) {
    case KvType::f32: return attend_as<KvType::f32>(s);
    case KvType::f16: return attend_as<KvType::f16>(s);
    case KvType::i8: return attend_as<KvType::i8>(s);
    }
}

inline void merge(float *maximum, float *sum, float *weighted, float span_maximum, float span_sum,
                  const float *span_weighted, int head_dim) {
    const float top = span_maximum > *maximum ? span_maximum : *maximum;
    const float keep = top == *maximum ? 1.0f : exp1(*maximum - top);
    const float take = top == span_maximum ? 1.0f : exp1(span_maximum - top);
    for (int d = 0; d < head_dim; d += 8)
        store8(weighted + d,
               fma(load8(span_weighted + d), all8(take), mul(load8(weighted + d), all8(keep))));
    *sum = *sum * keep + span_sum * take;
    *maximum = top;
}

inline void finish(const float *weighted, float sum, int head_dim, float *out) {
    const F8 divisor = all8(sum);
    for (int d = 0; d < head_dim; d += 8) store8(out + d, div(load8(weighted + d), divisor));
}

// ---- the KV cache -----------------------------------------------------------------------------

// Beyond float16's range a value would become infinite and poison the zero weights of others, so it
// is cut to it. Whether one was.
inline bool round_to_f16(const float *from, int head_dim, std::uint16_t *to) {
    constexpr float kLargest = 65504;
    const F8 limit = all8(kLargest), lower = all8(-kLargest);
    F8 largest = all8(0);
    for (int d = 0; d < head_dim; d += 8) {
        const F8 x = load8(from + d);
        store_f16(to + d, max(lower, min(limit, x)));
        largest = max(abs(x), largest);
    }
    return max_lanes(largest) > kLargest;
}

// codes[i] * the result ≈ from[i]
inline float round_to_i8(const float *from, int head_dim, std::int8_t *codes) {
    F8 largest = all8(0);
    for (int d = 0; d < head_dim; d += 8) largest = max(largest, abs(load8(from + d)));
    const float absmax = max_lanes(largest), floor = 1e-30f;
    const F8 t = all8(127.0f / (absmax > floor ? absmax : floor));
    I32 sum = zero_i32();
    for (int d = 0; d < head_dim; d += 16)
        sum = store_i8(codes + d, mul(load8(from + d), t), mul(load8(from + d + 8), t), sum);
    return absmax / 127;
}

constexpr int kMaxHeadDim = 1024;

inline bool store_key(const float *key, int head_dim, void *block, int slot, KvType type) {
    const auto put = [&](auto *to, const auto *from) {
        for (int d = 0; d < head_dim; ++d) to[d * kKvBlock + slot] = from[d];
    };
    if (type == KvType::f32) {
        put(static_cast<float *>(block), key);
        return false;
    }
    if (type == KvType::f16) {
        std::uint16_t half[kMaxHeadDim];
        const bool cut = round_to_f16(key, head_dim, half);
        put(static_cast<std::uint16_t *>(block), half);
        return cut;
    }
    std::int8_t codes[kMaxHeadDim];
    const_cast<float *>(kv_scales(block, head_dim))[slot] = round_to_i8(key, head_dim, codes);
    put(static_cast<std::int8_t *>(block), codes);
    return false;
}

inline bool store_value(const float *value, int head_dim, void *block, int slot, KvType type) {
    if (type == KvType::f32)
        for (int d = 0; d < head_dim; ++d) static_cast<float *>(block)[slot * head_dim + d] = value[d];
    else if (type == KvType::f16)
        return round_to_f16(value, head_dim, static_cast<std::uint16_t *>(block) + slot * head_dim);
    else
        const_cast<float *>(kv_scales(block, head_dim))[slot] =
            round_to_i8(value, head_dim, static_cast<std::int8_t *>(block) + slot * head_dim);
    return false;
}
