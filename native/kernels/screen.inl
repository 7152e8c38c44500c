// The looks at a copy of the head: planes of two bits times int8 activations, by the kernels of
// ternary matrices; and the noise of sampling. `model/screen.py` specifies rotation and planes.

// Rotate x [n] into out [padded]: signs (which carry 1/√block), then Hadamard blocks.
inline void rotate(const float *x, const float *signs, int n, int padded, int block, float *out) {
    for (int i = 0; i < n; ++i) out[i] = x[i] * signs[i];
    for (int i = n; i < padded; ++i) out[i] = 0;
    for (int half = 1; half < block; half *= 2)
        for (int start = 0; start < padded; start += 2 * half)
            for (int i = start; i < start + half; ++i) {
                const float a = out[i], b = out[i + half];
                out[i] = a + b;
                out[i + half] = a - b;
            }
}

inline void coarse(const Ternary &plane, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride) {
    stream<PlaneBits>(plane, x, group_begin, group_end, out, out_stride, false);
}

inline void fine(const Ternary &plane, const Activations &x, int t, const std::int8_t *spread,
                 const std::int32_t *rows, int count, float factor, float *scores) {
    const float scale = x.scales[t] * factor;
    const std::int32_t middle = x.sums[t];
    each_row<PlaneBits>(plane, spread, rows, count, [&](int i, std::int32_t sum) {
        scores[rows[i]] += static_cast<float>(sum - middle) * (plane.scales[rows[i]] * scale);
    });
}

constexpr int kScanned = 64; // scores looked at together, of which few hold what is looked for

// The index of the largest of n scores, the first of equals; -1 where none is above -∞.
inline int largest(const float *scores, int n) {
    int best = -1;
    float most = kMinusInfinity;
    for (int first = 0; first < n; first += kScanned) {
        const int count = min_of(kScanned, n - first);
        if (count == kScanned) {
            F8 top = all8(kMinusInfinity);
            for (int i = 0; i < kScanned; i += 8) top = max(load8(scores + first + i), top);
            if (max_lanes(top) <= most) continue;
        }
        for (int i = first; i < first + count; ++i) {
            if (!(scores[i] > most)) continue;
            best = i;
            most = scores[i];
        }
    }
    return best;
}

// The rows of [begin, end) that may reach the bound, in order; returns how many.
inline int reaching(const Plane &plane, const Reach &reach, const float *scores, int begin, int end,
                    std::int32_t *out) {
    const float *residuals = plane.residuals, *scales = plane.matrix.scales;
    const F8 of_residual = all8(reach.residual_weight), of_scale = all8(reach.scale_weight);
    const F8 inverse = all8(reach.inverse_temperature);
    int found = 0;
    for (int first = begin; first < end; first += kScanned) {
        const int count = min_of(kScanned, end - first);
        alignas(32) float most[kScanned];
        if (count == kScanned) {
            F8 top = all8(kMinusInfinity);
            for (int i = 0; i < kScanned; i += 8) {
                const F8 margin = add(mul(of_residual, load8(residuals + first + i)),
                                      mul(of_scale, load8(scales + first + i)));
                const F8 reached = add(load8(scores + first + i), mul(margin, inverse));
                store8(most + i, reached);
                top = max(reached, top);
            }
            if (max_lanes(top) < reach.bound) continue;
        } else {
            for (int i = 0; i < count; ++i) {
                const float margin = reach.residual_weight * residuals[first + i] +
                                     reach.scale_weight * scales[first + i];
                most[i] = scores[first + i] + margin * reach.inverse_temperature;
            }
        }
        for (int i = 0; i < count; ++i)
            if (most[i] >= reach.bound) out[found++] = first + i;
    }
    return found;
}

// Natural logarithm of a positive normal number, relative error below 2e-7 (Cephes' logf), in
// operations that are the same on every instruction set.
inline float log1(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // x = m · 2^e with m in [√½, √2)
    const std::int32_t e = static_cast<std::int32_t>(bits - 0x3f3504f3) >> 23;
    bits -= static_cast<std::uint32_t>(e) << 23;
    float m;
    std::memcpy(&m, &bits, 4);
    m -= 1;
    const float n = static_cast<float>(e);
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    const float square = m * m;
    const float y = p * m * square - 2.12194440e-4f * n - 0.5f * square;
    return m + y + 0.693359375f * n;
}

// Standard Gumbel noise of the tokens [first, first + count): a function of key and token alone.
inline void gumbel(std::uint32_t key, int first, int count, float *out) {
    for (int i = 0; i < count; ++i) {
        std::uint32_t h = (static_cast<std::uint32_t>(first + i) * 0x9e3779b9u) ^ key;
        h ^= h >> 16;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        h ^= h >> 16;
        // 23 bits and a half: never 0, never 1
        const float uniform = (static_cast<float>(h >> 9) + 0.5f) * 0x1.0p-23f;
        out[i] = -log1(-log1(uniform));
    }
}
