// A low-rank adapter of a ternary matrix: B(A x), in float32, beside the matrix' own product. x is
// what the matrix is given before it is quantised, behind its norm.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace trilobit {

// Borrowed. The rank is padded with zeros to a multiple of kFloatPad; what scales B is in it.
struct Adapter {
    Dense a{}; // [rank, columns]
    Dense b{}; // [rows, rank]

    bool there() const { return a.data; }
    // Multiply-adds of a token.
    double products() const { return 1.0 * a.rows * a.columns + 1.0 * b.rows * b.columns; }
};

// Adds what adapters say. As everywhere, one thread sums one result in one order.
class Adapters {
  public:
    // tokens: of one forward. widest: input of any adapter. rank: the largest.
    Adapters(const Kernels &kernels, Pool &pool, int tokens, int widest, int rank);

    // out[t * out_stride + row] += B(A norm(x[t * stride])), for `tokens` tokens. gain: of the
    // norm; null: x is taken as it is.
    void add(const Adapter &adapter, const float *x, int stride, const float *gain, float eps,
             int tokens, float *out, int out_stride);

    // About how long that takes one thread, of a token.
    static double ns(const Kernels &k, const Adapter &adapter) {
        return k.ns_of_floats(adapter.products());
    }

  private:
    const Kernels &k_;
    Pool &pool_;
    Array<float> normed_, down_; // [tokens, input], [tokens, rank]
};

} // namespace trilobit
