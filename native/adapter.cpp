#include "adapter.h"

#include <algorithm>
#include <cstddef>

namespace trilobit {
namespace {

// Of B's products, so many lie on the stack before they are added.
constexpr int kRowsAtOnce = 64, kTokensAtOnce = 16;

} // namespace

Adapters::Adapters(const Kernels &kernels, Pool &pool, int tokens, int widest, int rank)
    : k_(kernels), pool_(pool),
      normed_(static_cast<std::size_t>(tokens) * round_up(widest, kFloatPad)),
      down_(static_cast<std::size_t>(tokens) * rank) {}

void Adapters::add(const Adapter &adapter, const float *x, int stride, const float *gain, float eps,
                   int tokens, float *out, int out_stride) {
    const Dense &a = adapter.a, &b = adapter.b;
    const int n = a.columns, rank = a.rows;
    if (gain) {
        const int padded = round_up(n, kFloatPad);
        pool_.split(tokens, k_.ns_of_floats(1.0 * tokens * n), [&](int begin, int end, int) {
            for (std::ptrdiff_t t = begin; t < end; ++t)
                k_.norm(x + t * stride, gain, n, eps, normed_.data() + t * padded);
        });
        x = normed_.data();
        stride = padded;
    }
    const double ns = tokens * Adapters::ns(k_, adapter);
    pool_.split(rank, ns * n / (n + b.rows), [&](int begin, int end, int) {
        k_.dense(a, begin, end, x, stride, tokens, down_.data(), rank);
    });
    pool_.split(b.rows, ns * b.rows / (n + b.rows), [&](int begin, int end, int) {
        float up[kTokensAtOnce * kRowsAtOnce];
        for (int row = begin; row < end; row += kRowsAtOnce) {
            const int rows = std::min(kRowsAtOnce, end - row);
            for (int t = 0; t < tokens; t += kTokensAtOnce) {
                const int count = std::min(kTokensAtOnce, tokens - t);
                k_.dense(b, row, row + rows, down_.data() + std::ptrdiff_t{t} * rank, rank, count,
                         up - row, kRowsAtOnce);
                for (int i = 0; i < count; ++i) {
                    float *to = out + std::ptrdiff_t{t + i} * out_stride + row;
                    for (int r = 0; r < rows; ++r) to[r] += up[i * kRowsAtOnce + r];
                }
            }
        }
    });
}

} // namespace trilobit
