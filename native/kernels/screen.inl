// The first pass over the head: four-bit rows times int8 activations, and the noise of sampling.
// `screen.py` specifies the rotation and the layout.

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

// Dot products of V vectors of a row group with Tn tokens: sums[t][row of the V] = Σ code·a
template <int V, int Tn>
TRILOBIT_NOINLINE void screen_tile(const std::uint8_t *w, int blocks, const std::int8_t *x,
                                   std::ptrdiff_t stride, std::int32_t *sums) {
    constexpr int kBytes = Int8::kBytes;
    Int8::Wide wide[Tn * V];
    TRILOBIT_UNROLL
    for (int t = 0; t < Tn; ++t)
        TRILOBIT_UNROLL
        for (int v = 0; v < V; ++v) wide[t * V + v] = Int8::zero_wide();
    for (int b = 0; b < blocks;) {
        const int end =
            blocks - b > Int8::kScreenBlocksPerWiden ? b + Int8::kScreenBlocksPerWiden : blocks;
        Int8::Acc acc[Tn][V];
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) acc[t][v] = Int8::zero();
        for (; b < end; ++b) {
            const std::uint8_t *block = w + std::ptrdiff_t{b} * kBlockBytes;
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) {
                const Int8::Vec bytes = Int8::load(block + v * kBytes);
                const Int8::Vec low = Int8::nibbles(bytes), high = Int8::nibbles(Int8::upper(bytes));
                TRILOBIT_UNROLL
                for (int t = 0; t < Tn; ++t) {
                    const std::int8_t *a = x + t * stride + b * kScreenColumns + v * kBytes % 32;
                    acc[t][v] = Int8::dot(acc[t][v], low, Int8::activations(a));
                    acc[t][v] = Int8::dot(acc[t][v], high, Int8::activations(a + 32));
                    Int8::keep(acc[t][v]);
                }
            }
        }
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t)
            TRILOBIT_UNROLL
            for (int v = 0; v < V; ++v) wide[t * V + v] = Int8::add(wide[t * V + v], acc[t][v]);
    }
    row_sums(wide, sums);
}

template <int Tn>
inline void screen_tokens(const Screen &s, const Activations &x, int token, int group, float *out,
                          int out_stride) {
    const int blocks = s.columns / kScreenColumns;
    const std::uint8_t *rows_codes = s.codes + std::ptrdiff_t{group} * blocks * kBlockBytes;
    const std::int8_t *codes = x.codes + std::ptrdiff_t{token} * x.stride;
    std::int32_t sums[Tn][kRows];
    for_vectors<Tn>(sums, [&](int v, std::int32_t *part) {
        screen_tile<vectors_for<Tn>(), Tn>(rows_codes + v * Int8::kBytes, blocks, codes, x.stride,
                                           part);
    });
    const int rows = min_of(kRows, s.rows - group * kRows);
    for (int t = 0; t < Tn; ++t)
        for (int r = 0; r < rows; ++r) {
            const int row = group * kRows + r;
            // Codes are stored with 8 added.
            const std::int32_t dot = sums[t][r] - 8 * x.sums[token + t];
            out[std::ptrdiff_t{token + t} * out_stride + row] =
                static_cast<float>(dot) * (s.scales[row] * x.scales[token + t]);
        }
}

inline void screen(const Screen &s, const Activations &x, int group_begin, int group_end,
                   float *out, int out_stride) {
    for (int group = group_begin; group < group_end; ++group) {
        int t = 0;
        for (; t + 4 <= x.tokens; t += 4) screen_tokens<4>(s, x, t, group, out, out_stride);
        switch (x.tokens - t) {
        case 3: screen_tokens<3>(s, x, t, group, out, out_stride); break;
        case 2: screen_tokens<2>(s, x, t, group, out, out_stride); break;
        case 1: screen_tokens<1>(s, x, t, group, out, out_stride); break;
        default: break;
        }
    }
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
