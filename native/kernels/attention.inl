// Attention of a few queries over one span of keys: scores, softmax, weighted values, block by
// block, keeping the running maximum. A query's numbers come from its own operations in the order
// of its keys, whatever queries share the pass. Keys lie transposed, so that a vector holds one
// dimension of eight positions.

constexpr float kMinusInfinity = -__builtin_huge_valf();

inline float exp1(float x) { return first_lane(exp8(all8(x))); }

template <KvType type> inline F8 load_kv(const void *block, std::ptrdiff_t i) {
    if constexpr (type == KvType::f32) return load8(static_cast<const float *>(block) + i);
    if constexpr (type == KvType::f16)
        return load_f16(static_cast<const std::uint16_t *>(block) + i);
    if constexpr (type == KvType::i8) return load_i8(static_cast<const std::int8_t *>(block) + i);
}

// The scales of an i8 block's positions.
inline const float *kv_scales(const void *block, int head_dim) {
    return reinterpret_cast<const float *>(static_cast<const std::int8_t *>(block) +
                                           head_dim * kKvBlock);
}

// Element i of a block that comes next: blocks lie in pages of their own, so that the machine does
// not foresee them.
template <KvType type> inline void prefetch_kv(const void *block, std::ptrdiff_t i) {
    constexpr int kSize = type == KvType::f32 ? 4 : type == KvType::f16 ? 2 : 1;
    prefetch(static_cast<const char *>(block) + i * kSize);
}

// scores[q][position] of 16 positions, Q queries
template <KvType type, int Q>
inline void score(const void *keys, const void *next, int first, int head_dim,
                  const float *const *queries, float (*scores)[kKvBlock]) {
    F8 a[Q], b[Q];
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q) a[q] = b[q] = all8(0);
    for (int d = 0; d < head_dim; ++d) {
        const F8 low = load_kv<type>(keys, d * kKvBlock + first);
        const F8 high = load_kv<type>(keys, d * kKvBlock + first + 8);
        prefetch_kv<type>(next, d * kKvBlock + first);
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            const F8 x = all8(queries[q][d]);
            a[q] = fma(x, low, a[q]);
            b[q] = fma(x, high, b[q]);
            keep(a[q]);
            keep(b[q]);
        }
    }
    F8 low = all8(1), high = all8(1);
    if constexpr (type == KvType::i8) {
        low = load8(kv_scales(keys, head_dim) + first);
        high = load8(kv_scales(keys, head_dim) + first + 8);
    }
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q) {
        store8(scores[q] + first, type == KvType::i8 ? mul(a[q], low) : a[q]);
        store8(scores[q] + first + 8, type == KvType::i8 ? mul(b[q], high) : b[q]);
    }
}

// weighted[q] = weighted[q] * shrink[q] + Σ p[q][position] * value[position]
template <KvType type, int Q>
inline void weigh(const void *values, const void *next, int head_dim, const float (*p)[kKvBlock],
                  const float *shrink, float *weighted) {
    for (int d = 0; d < head_dim; d += kFloatPad) {
        F8 a[Q], b[Q];
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            const float *w = weighted + std::ptrdiff_t{q} * head_dim + d;
            a[q] = mul(load8(w), all8(shrink[q]));
            b[q] = mul(load8(w + 8), all8(shrink[q]));
        }
        for (int j = 0; j < kKvBlock; ++j) {
            const F8 low = load_kv<type>(values, j * head_dim + d);
            const F8 high = load_kv<type>(values, j * head_dim + d + 8);
            prefetch_kv<type>(next, d * kKvBlock + j * kFloatPad);
            TRILOBIT_UNROLL
            for (int q = 0; q < Q; ++q) {
                const F8 x = all8(p[q][j]);
                a[q] = fma(x, low, a[q]);
                b[q] = fma(x, high, b[q]);
                keep(a[q]);
                keep(b[q]);
            }
        }
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            float *w = weighted + std::ptrdiff_t{q} * head_dim + d;
            store8(w, a[q]);
            store8(w + 8, b[q]);
        }
    }
}

// Turn a block's scores into exp(score - maximum); keys before `first` and from `visible` on weigh
// exactly nothing. Returns what earlier sums must be multiplied with.
inline float soften(float *scores, int first, int visible, float *maximum, float *sum) {
    for (int j = 0; j < first; ++j) scores[j] = kMinusInfinity;
    for (int j = visible; j < kKvBlock; ++j) scores[j] = kMinusInfinity;
    F8 largest = all8(*maximum);
    for (int j = 0; j < kKvBlock; j += 8) largest = max(largest, load8(scores + j));
    const float top = max_lanes(largest);
    const float shrink = top == *maximum ? 1.0f : exp1(*maximum - top);
    for (int j = 0; j < kKvBlock; j += 8)
        store8(scores + j, exp8(sub(load8(scores + j), all8(top))));
    for (int j = 0; j < first; ++j) scores[j] = 0;
    for (int j = visible; j < kKvBlock; ++j) scores[j] = 0;
    F8 a = all8(0);
    for (int j = 0; j < kKvBlock; j += 8) a = add(a, load8(scores + j));
    *sum = *sum * shrink + sum_lanes(a);
    *maximum = top;
    return shrink;
}

template <KvType type, int Q> inline void attend_queries(const AttentionSpan &s, int first) {
    const float *const *queries = s.queries + first;
    const int *begin = s.first + first, *visible = s.visible + first;
    float *weighted = s.weighted + std::ptrdiff_t{first} * s.head_dim;
    int keys = 0, unseen = kSpan; // no query sees a key before that
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q) {
        keys = visible[q] > keys ? visible[q] : keys;
        unseen = min_of(unseen, begin[q] > 0 ? begin[q] : 0);
        s.maximum[first + q] = kMinusInfinity;
        s.sum[first + q] = 0;
    }
    for (int i = 0; i < Q * s.head_dim; ++i) weighted[i] = 0;
    float scores[Q][kKvBlock];
    for (int key = unseen / kKvBlock * kKvBlock; key < keys; key += kKvBlock) {
        const int now = key / kKvBlock, next = key + kKvBlock < keys ? now + 1 : now;
        score<type, Q>(s.keys[now], s.keys[next], 0, s.head_dim, queries, scores);
        score<type, Q>(s.keys[now], s.keys[next], 16, s.head_dim, queries, scores);
        float shrink[Q];
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            const int seen = min_of(visible[q] - key, kKvBlock);
            const int skipped = begin[q] > key ? begin[q] - key : 0;
            shrink[q] = 1;
            if (seen > skipped)
                shrink[q] = soften(scores[q], skipped, seen, &s.maximum[first + q],
                                   &s.sum[first + q]);
            else
                for (float &p : scores[q]) p = 0;
        }
        const void *values = s.values[now];
        if constexpr (type == KvType::i8) // a value's scale goes into its weight
            for (int q = 0; q < Q; ++q)
                for (int j = 0; j < kKvBlock; j += 8)
                    store8(scores[q] + j, mul(load8(scores[q] + j),
                                              load8(kv_scales(values, s.head_dim) + j)));
        weigh<type, Q>(values, s.values[next], s.head_dim, scores, shrink, weighted);
    }
}

template <KvType type> inline void attend_as(const AttentionSpan &s) {
    int q = 0;
    for (; q + 4 <= s.query_count; q += 4) attend_queries<type, 4>(s, q);
    for (; q + 2 <= s.query_count; q += 2) attend_queries<type, 2>(s, q);
    for (; q < s.query_count; ++q) attend_queries<type, 1>(s, q);
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

// Beyond float16's range a value would become infinite and poison the zero weights of others.
inline void round_to_f16(const float *from, int head_dim, std::uint16_t *to) {
    const F8 limit = all8(65504.0f), lower = all8(-65504.0f);
    for (int d = 0; d < head_dim; d += 8) store_f16(to + d, max(lower, min(limit, load8(from + d))));
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

inline void store_key(const float *key, int head_dim, void *block, int slot, KvType type) {
    const auto put = [&](auto *to, const auto *from) {
        for (int d = 0; d < head_dim; ++d) to[d * kKvBlock + slot] = from[d];
    };
    if (type == KvType::f32) return put(static_cast<float *>(block), key);
    if (type == KvType::f16) {
        std::uint16_t half[kMaxHeadDim];
        round_to_f16(key, head_dim, half);
        return put(static_cast<std::uint16_t *>(block), half);
    }
    std::int8_t codes[kMaxHeadDim];
    const_cast<float *>(kv_scales(block, head_dim))[slot] = round_to_i8(key, head_dim, codes);
    put(static_cast<std::int8_t *>(block), codes);
}

inline void store_value(const float *value, int head_dim, void *block, int slot, KvType type) {
    if (type == KvType::f32)
        for (int d = 0; d < head_dim; ++d) static_cast<float *>(block)[slot * head_dim + d] = value[d];
    else if (type == KvType::f16)
        round_to_f16(value, head_dim, static_cast<std::uint16_t *>(block) + slot * head_dim);
    else
        const_cast<float *>(kv_scales(block, head_dim))[slot] =
            round_to_i8(value, head_dim, static_cast<std::int8_t *>(block) + slot * head_dim);
}
