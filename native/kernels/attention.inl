// Attention of a few queries over one span of keys: scores, softmax, weighted values, block by
// block, keeping the running maximum. A query's numbers come from its own operations in the order
// of its keys, whatever queries share the pass. Keys lie transposed, so that a vector holds one
// dimension of eight positions.

constexpr float kMinusInfinity = -__builtin_huge_valf();

inline float exp1(float x) { return first_lane(exp8(all8(x))); }

// scores[q][position] of 16 positions, Q queries
template <Float type, int Q>
inline void score(const void *keys, int first, int head_dim, const float *const *queries,
                  float (*scores)[kKvBlock]) {
    F8 a[Q], b[Q];
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q) a[q] = b[q] = all8(0);
    for (int d = 0; d < head_dim; ++d) {
        const F8 low = load_as<type>(keys, d * kKvBlock + first);
        const F8 high = load_as<type>(keys, d * kKvBlock + first + 8);
        TRILOBIT_UNROLL
        for (int q = 0; q < Q; ++q) {
            const F8 x = all8(queries[q][d]);
            a[q] = fma(x, low, a[q]);
            b[q] = fma(x, high, b[q]);
            keep(a[q]);
            keep(b[q]);
        }
    }
    TRILOBIT_UNROLL
    for (int q = 0; q < Q; ++q) {
        store8(scores[q] + first, a[q]);
        store8(scores[q] + first + 8, b[q]);
    }
}

// weighted[q] = weighted[q] * shrink[q] + Σ p[q][position] * value[position]
template <Float type, int Q>
inline void weigh(const void *values, int head_dim, const float (*p)[kKvBlock],
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
            const F8 low = load_as<type>(values, j * head_dim + d);
            const F8 high = load_as<type>(values, j * head_dim + d + 8);
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

template <Float type, int Q> inline void attend_queries(const AttentionSpan &s, int first) {
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
        const void *block = s.keys[key / kKvBlock];
        score<type, Q>(block, 0, s.head_dim, queries, scores);
        score<type, Q>(block, 16, s.head_dim, queries, scores);
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
        weigh<type, Q>(s.values[key / kKvBlock], s.head_dim, scores, shrink, weighted);
    }
}

template <Float type> inline void attend_as(const AttentionSpan &s) {
    int q = 0;
    for (; q + 4 <= s.query_count; q += 4) attend_queries<type, 4>(s, q);
    for (; q + 2 <= s.query_count; q += 2) attend_queries<type, 2>(s, q);
    for (; q < s.query_count; ++q) attend_queries<type, 1>(s, q);
}

inline void attend(const AttentionSpan &s, Float type) {
    if (type == Float::f32)
        attend_as<Float::f32>(s);
    else
        attend_as<Float::f16>(s);
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

constexpr int kMaxHeadDim = 1024;

inline void store_key(const float *key, int head_dim, void *block, int slot, Float type) {
    if (type == Float::f32) {
        for (int d = 0; d < head_dim; ++d) static_cast<float *>(block)[d * kKvBlock + slot] = key[d];
        return;
    }
    std::uint16_t half[kMaxHeadDim];
    round_to_f16(key, head_dim, half);
    for (int d = 0; d < head_dim; ++d)
        static_cast<std::uint16_t *>(block)[d * kKvBlock + slot] = half[d];
}

inline void store_value(const float *value, int head_dim, void *block, int slot, Float type) {
    if (type == Float::f32)
        for (int d = 0; d < head_dim; ++d) static_cast<float *>(block)[slot * head_dim + d] = value[d];
    else
        round_to_f16(value, head_dim, static_cast<std::uint16_t *>(block) + slot * head_dim);
}
