// The output head: the logits of hidden states, and the next token by as little as decides it.
//
// Sampling that needs only a winner looks at a copy of the head first (`model/screen.py`): at two
// bits of every weight, then at two more of the rows whose logit may still matter, and computes
// those that still may as the full pass would, bit for bit. Of tokens that are forbidden none is
// computed; where only few are allowed, only those are.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"
#include "rows.h"
#include "sampler.h"

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace trilobit {

class Head {
  public:
    // The head is `ternary` if that has codes, else `weights`. The screen may have no codes: then
    // every row is computed. `rows_at_once` hidden states are sampled together at most.
    Head(const DenseTable &weights, const Ternary &ternary, const Screen &screen, int threads,
         int rows_at_once);

    // out[t][vocab] of `tokens` hidden states x[t * stride].
    void logits(const Kernels &k, Pool &pool, const float *x, int stride, int tokens, float *out);
    // One token for each hidden state; samplers[t] is advanced.
    void sample(const Kernels &k, Pool &pool, const float *x, int stride,
                std::span<Sampler *const> samplers, std::int32_t *out);

    // About how long one thread takes for `tokens` hidden states.
    double ns(const Kernels &k, int tokens) const;

    // Since the start: tokens chosen by screening, rows that were looked at twice, for any token,
    // and rows computed exactly for those.
    std::uint64_t screened_tokens() const { return screened_tokens_; }
    std::uint64_t second_looks() const { return second_looks_; }
    std::uint64_t rescored_rows() const { return rescored_rows_; }
    // Passes over all of a table whose rows are otherwise read from a file.
    std::uint64_t full_passes() const { return full_passes_; }
    // Why the last call's result is worth nothing: see Rows.
    std::optional<int> take_failure() { return rows_.take_failure(); }

  private:
    // A token to be chosen.
    struct Choice {
        const float *x;
        Sampler *sampler;
        std::int32_t *out;
    };
    // What the looks know of one hidden state.
    struct Pass {
        Reach reach;
        std::size_t rank, probes; // the bound is the exact score of that rank of so many leaders
        std::uint32_t noise_key;
        bool noisy;
        std::vector<std::int32_t> adjusted; // tokens whose logits bias and penalties change
    };
    // What one thread found among the rows it took for one hidden state.
    struct Found {
        std::vector<std::int32_t> leaders;  // rows with the best scores, a heap, the worst in front
        std::vector<std::int32_t> reaching; // rows that can still matter
    };

    int most_of_few() const;
    void sample_screened(const Kernels &k, Pool &pool, int stride);
    void choose(const Kernels &k, Pool &pool, const Choice &choice,
                std::vector<Candidate> &candidates, float *scores);
    void ternary_logits(const Kernels &k, Pool &pool, const float *x, int stride, int tokens,
                        float *out);
    void prepare(const Kernels &k, const Activations &out, int t, const float *x,
                 const Sampler &sampler);
    void race(const Kernels &k, int t, const Allowed &allowed, int begin, int end, int thread);
    void set_bound(const Kernels &k, int t, const float *x, const Sampler &sampler, int thread);
    void look_again(const Kernels &k, const Activations &codes, int t, int begin, int end,
                    int thread);
    bool gather(int t);
    float rescored(const Kernels &k, const float *x, int row, int thread, float *scores);

    Found &found(int t, int thread) {
        return found_[static_cast<std::size_t>(t * threads_ + thread)];
    }

    Rows rows_;
    Ternary ternary_{};
    Screen screen_{};
    int vocab_ = 0, threads_ = 0, rows_at_once_ = 0;
    Array<float> signs_, rotated_, scores_; // scores_[t][vocab]: approximate, then exact logits
    Array<std::int8_t> codes_, spread_;
    Array<float> code_scales_;
    Array<std::int32_t> code_sums_;
    Array<unsigned char> scratch_; // of a ternary head, kScratchBytes a thread
    std::vector<Pass> passes_;
    std::vector<Found> found_;                       // [t][thread]
    std::vector<std::vector<Candidate>> candidates_; // [t]
    std::vector<Choice> few_, many_;                 // by how many tokens are allowed
    std::atomic<std::uint64_t> screened_tokens_{0}, second_looks_{0}, rescored_rows_{0},
        full_passes_{0};
};

} // namespace trilobit
