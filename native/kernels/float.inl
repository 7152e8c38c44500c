// Float kernels. One thread sums one result in one fixed order: two accumulators of eight lanes,
// folded by `sum_lanes`, so that a value never depends on what is computed beside it.

inline float sum_lanes(F8 a) {
    float v[8];
    store8(v, a);
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline float max_lanes(F8 a) {
    float v[8];
    store8(v, a);
    const auto larger = [](float x, float y) { return x > y ? x : y; };
    return larger(larger(larger(v[0], v[4]), larger(v[2], v[6])),
                  larger(larger(v[1], v[5]), larger(v[3], v[7])));
}

inline float first_lane(F8 a) {
    float v[8];
    store8(v, a);
    return v[0];
}

// ---- norm, quantise, activation ---------------------------------------------------------------

// 1 / sqrt(mean(x²) + eps)
inline float inverse_rms(const float *x, int n, float eps) {
    F8 a = all8(0), b = all8(0);
    for (int i = 0; i < n; i += kFloatPad) {
        const F8 low = load8(x + i), high = load8(x + i + 8);
        a = fma(low, low, a);
        b = fma(high, high, b);
    }
    const float mean = sum_lanes(add(a, b)) / static_cast<float>(n);
    return first_lane(div(all8(1), sqrt(all8(mean + eps))));
}

inline void norm(const float *x, const float *gain, int n, float eps, float *out) {
    const F8 r = all8(inverse_rms(x, n, eps));
    for (int i = 0; i < n; i += kFloatPad) {
        store8(out + i, mul(load8(gain + i), mul(load8(x + i), r)));
        store8(out + i + 8, mul(load8(gain + i + 8), mul(load8(x + i + 8), r)));
    }
}

// Absmax int8 codes of token t of `out`, from load(i), which gives eight values.
template <typename Load> inline void quantise(int n, Load load, const Activations &out, int t) {
    F8 largest = all8(0);
    for (int i = 0; i < n; i += 8) largest = max(largest, abs(load(i)));
    const float absmax = max_lanes(largest);
    const float scale = 127.0f / (absmax > 1e-5f ? absmax : 1e-5f);
    const F8 scale8 = all8(scale);
    I32 sum = zero_i32();
    std::int8_t *codes = out.first(t);
    const std::ptrdiff_t step = 4 * out.tokens_beside(t);
    for (int i = 0; i < n; i += kFloatPad) {
        std::int8_t part[kFloatPad];
        sum = store_i8(part, mul(load(i), scale8), mul(load(i + 8), scale8), sum);
        for (int j = 0; j < kFloatPad; j += 4, codes += step) std::memcpy(codes, part + j, 4);
    }
    for (int i = round_up(n, kFloatPad); i < out.columns; i += 4, codes += step)
        std::memset(codes, 0, 4);
    out.scales[t] = 1.0f / scale;
    out.sums[t] = total(sum);
}

inline void norm_quantise(const float *x, const float *gain, int n, float eps,
                          const Activations &out, int t) {
    if (!gain) return quantise(n, [&](int i) { return load8(x + i); }, out, t);
    const F8 r = all8(inverse_rms(x, n, eps));
    const auto normed = [&](int i) { return mul(load8(gain + i), mul(load8(x + i), r)); };
    quantise(n, normed, out, t);
}

// exp(x) for x ≤ 0, relative error below 2e-7: x = n·ln2 + r, then a polynomial in r (Cephes).
template <typename Vector, typename All> inline Vector exponential(Vector x, All all) {
    x = max(x, all(-87.0f));
    const Vector n = round(mul(x, all(1.44269504088896341f)));
    Vector r = fma(n, all(-0.693359375f), x);
    r = fma(n, all(2.12194440e-4f), r);
    Vector p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(p, mul(r, r), add(r, all(1)));
    return mul(p, exp2i(n));
}

inline F8 exp8(F8 x) { return exponential(x, all8); }
inline Wide exp_wide(Wide x) { return exponential(x, all_wide); }

// 1 / (1 + exp(-x)), whose exponentials are of numbers that are not positive on either side of 0.
inline F8 sigmoid(F8 x) {
    const F8 zero = all8(0);
    return div(exp8(min(x, zero)), add(all8(1), exp8(sub(zero, abs(x)))));
}

inline F8 activate(Activation act, F8 x) {
    if (act == Activation::silu) return mul(x, sigmoid(x));
    // (1 + tanh(u)) / 2 = sigmoid(2u), with u = √(2/π)·(x + 0.044715·x³)
    const F8 cubed = mul(mul(x, x), x);
    return mul(x, sigmoid(mul(all8(1.5957691216f), fma(cubed, all8(0.044715f), x))));
}

// Where a thread's rows end must not show: the last few go through a vector as well.
inline void gate(Activation act, float *gate, const float *up, int n) {
    int i = 0;
    if (act == Activation::relu2) { // as gated_rows, which reads no up behind a closed gate
        for (; i < n; ++i) gate[i] = gate[i] > 0 ? gate[i] * gate[i] * up[i] : 0;
        return;
    }
    for (; i + 8 <= n; i += 8) store8(gate + i, mul(activate(act, load8(gate + i)), load8(up + i)));
    if (i == n) return;
    float g[8] = {}, u[8] = {};
    for (int j = 0; i + j < n; ++j) {
        g[j] = gate[i + j];
        u[j] = up[i + j];
    }
    store8(g, mul(activate(act, load8(g)), load8(u)));
    for (int j = 0; i + j < n; ++j) gate[i + j] = g[j];
}

inline void rope(const float *x, const float *cos, const float *sin, int half, float *out) {
    for (int i = 0; i < half; ++i) {
        out[i] = x[i] * cos[i] - x[i + half] * sin[i];
        out[i + half] = x[i + half] * cos[i] + x[i] * sin[i];
    }
}

// ---- float tables: embedding and head ---------------------------------------------------------

template <Float type> inline F8 load_as(const void *p, std::ptrdiff_t i) {
    if constexpr (type == Float::f32) return load8(static_cast<const float *>(p) + i);
    if constexpr (type == Float::f16) return load_f16(static_cast<const std::uint16_t *>(p) + i);
    if constexpr (type == Float::bf16) return load_bf16(static_cast<const std::uint16_t *>(p) + i);
}

// The last n < kFloatPad elements, zero beyond them: a file's row does not end on a vector.
template <Float type>
inline void load_tail(const void *p, std::ptrdiff_t i, int n, F8 *low, F8 *high) {
    alignas(32) unsigned char buffer[kFloatPad * 4] = {};
    const unsigned char *from = static_cast<const unsigned char *>(p) + i * size_of(type);
    for (int b = 0; b < n * size_of(type); ++b) buffer[b] = from[b];
    *low = load_as<type>(buffer, 0);
    *high = load_as<type>(buffer, 8);
}

template <Float type> inline void embed_as(const Dense &table, int row, float *out) {
    const std::ptrdiff_t start = std::ptrdiff_t{row} * table.columns;
    const int whole = table.columns / kFloatPad * kFloatPad;
    for (int i = 0; i < whole; i += 8) store8(out + i, load_as<type>(table.data, start + i));
    if (whole < table.columns) {
        F8 low, high;
        load_tail<type>(table.data, start + whole, table.columns - whole, &low, &high);
        store8(out + whole, low);
        store8(out + whole + 8, high);
    }
}

inline void embed(const Dense &table, int row, float *out) {
    switch (table.type) {
    case Float::f32: return embed_as<Float::f32>(table, row, out);
    case Float::f16: return embed_as<Float::f16>(table, row, out);
    case Float::bf16: return embed_as<Float::bf16>(table, row, out);
    }
}

// R rows times Tn tokens; every dot product has its own two accumulators.
template <Float type, int R, int Tn>
inline void dense_tile(const Dense &w, int row, const float *x, int x_stride, float *out,
                       int out_stride) {
    F8 a[R][Tn], b[R][Tn];
    TRILOBIT_UNROLL
    for (int r = 0; r < R; ++r)
        TRILOBIT_UNROLL
        for (int t = 0; t < Tn; ++t) a[r][t] = b[r][t] = all8(0);
    const int n = w.columns, whole = n / kFloatPad * kFloatPad;
    const std::ptrdiff_t start = std::ptrdiff_t{row} * n;
    for (int i = 0; i < whole; i += kFloatPad)
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) {
            const F8 low = load_as<type>(w.data, start + std::ptrdiff_t{r} * n + i);
            const F8 high = load_as<type>(w.data, start + std::ptrdiff_t{r} * n + i + 8);
            TRILOBIT_UNROLL
            for (int t = 0; t < Tn; ++t) {
                a[r][t] = fma(low, load8(x + std::ptrdiff_t{t} * x_stride + i), a[r][t]);
                b[r][t] = fma(high, load8(x + std::ptrdiff_t{t} * x_stride + i + 8), b[r][t]);
            }
        }
    if (whole < n)
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r) {
            F8 low, high;
            load_tail<type>(w.data, start + std::ptrdiff_t{r} * n + whole, n - whole, &low, &high);
            TRILOBIT_UNROLL
            for (int t = 0; t < Tn; ++t) {
                a[r][t] = fma(low, load8(x + std::ptrdiff_t{t} * x_stride + whole), a[r][t]);
                b[r][t] = fma(high, load8(x + std::ptrdiff_t{t} * x_stride + whole + 8), b[r][t]);
            }
        }
    TRILOBIT_UNROLL
    for (int t = 0; t < Tn; ++t)
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r)
            out[std::ptrdiff_t{t} * out_stride + row + r] = sum_lanes(add(a[r][t], b[r][t]));
}

template <Float type, int R>
inline void dense_rows(const Dense &w, int row, const float *x, int x_stride, int tokens,
                       float *out, int out_stride) {
    int t = 0;
    if constexpr (R == 1)
        for (; t + 4 <= tokens; t += 4)
            dense_tile<type, R, 4>(w, row, x + std::ptrdiff_t{t} * x_stride, x_stride,
                                   out + std::ptrdiff_t{t} * out_stride, out_stride);
    if constexpr (R == 2)
        for (; t + 3 <= tokens; t += 3)
            dense_tile<type, R, 3>(w, row, x + std::ptrdiff_t{t} * x_stride, x_stride,
                                   out + std::ptrdiff_t{t} * out_stride, out_stride);
    for (; t < tokens; ++t)
        dense_tile<type, R, 1>(w, row, x + std::ptrdiff_t{t} * x_stride, x_stride,
                               out + std::ptrdiff_t{t} * out_stride, out_stride);
}

template <Float type>
inline void dense_as(const Dense &w, int row, int end, const float *x, int x_stride, int tokens,
                     float *out, int out_stride) {
    if (tokens == 1)
        for (; row + 4 <= end; row += 4)
            dense_rows<type, 4>(w, row, x, x_stride, tokens, out, out_stride);
    else
        for (; row + 2 <= end; row += 2)
            dense_rows<type, 2>(w, row, x, x_stride, tokens, out, out_stride);
    for (; row < end; ++row) dense_rows<type, 1>(w, row, x, x_stride, tokens, out, out_stride);
}

inline void dense(const Dense &w, int row_begin, int row_end, const float *x, int x_stride,
                  int tokens, float *out, int out_stride) {
    switch (w.type) {
    case Float::f32:
        return dense_as<Float::f32>(w, row_begin, row_end, x, x_stride, tokens, out, out_stride);
    case Float::f16:
        return dense_as<Float::f16>(w, row_begin, row_end, x, x_stride, tokens, out, out_stride);
    case Float::bf16:
        return dense_as<Float::bf16>(w, row_begin, row_end, x, x_stride, tokens, out, out_stride);
    }
}
