// The decoder of ternary models: token ids in, logits out, for any mixture of prefill and decode.
//
// A token's logits depend on its own sequence only: not on what else is in the batch, on how a
// prompt was cut into chunks, or on the number of threads. Nothing allocates inside `forward`.
#pragma once

#include "adapter.h"
#include "attention.h"
#include "batch.h"
#include "config.h"
#include "head.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"
#include "rows.h"
#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace trilobit {

// A ternary matrix, and the gain of the norm that its own input goes through, or null. Only one
// without such a norm may have an adapter.
struct Projection {
    Ternary weight;
    const float *norm;
    Adapter adapter{};
};

// Gains may be null, but for the norms before attention and MLP.
struct Layer {
    const float *attn_norm, *mlp_norm;
    const float *attn_sub_norm, *ffn_sub_norm;   // of the last projections' inputs
    const float *attn_post_norm, *mlp_post_norm; // of what is added to the residual stream
    const float *q_norm, *k_norm;                // of every head
    Projection q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
    bool sliding;

    // Whether gates and what they multiply must be whole before they meet.
    bool gates_apart() const { return gate_proj.adapter.there() || up_proj.adapter.there(); }
    template <typename Function> void each_projection(Function function) {
        for (Projection *p : {&q_proj, &k_proj, &v_proj, &o_proj, &gate_proj, &up_proj, &down_proj})
            function(*p);
    }
    template <typename Function> void each_projection(Function function) const {
        for (const Projection *p :
             {&q_proj, &k_proj, &v_proj, &o_proj, &gate_proj, &up_proj, &down_proj})
            function(*p);
    }
};

// Borrowed; must outlive the decoder. A table is ternary where its packed codes are given.
struct Weights {
    DenseTable embed_tokens;
    DenseTable lm_head;
    Screen screen; // of lm_head; may have no codes
    Ternary ternary_embed_tokens;
    Ternary ternary_lm_head;
    const float *norm;
    const float *inv_freq;       // [head_dim / 2]
    const float *local_inv_freq; // of sliding layers; null: the same
    std::vector<Layer> layers;
};

// Output rows of one sequence: of its last token, and of each token that may follow it.
struct Draft {
    Sampler *sampler;
    std::span<const std::int32_t> tokens;
    std::span<const Allowed> allowed = {}; // of each row; empty: all tokens are
};

// Of a layer's MLP: how many numbers were not zero, of all tokens so far.
struct Activity {
    std::uint64_t gates = 0; // open ones, by whose rows up_proj is multiplied
    std::uint64_t codes = 0; // that columns of down_proj are multiplied with
};

class Decoder {
  public:
    Decoder(const Config &config, const Weights &weights, const Capacity &capacity,
            const Kernels &kernels);

    void forward(const Batch &batch);
    // Of the last forward, for its output rows [begin, end): out[row - begin][vocab_size].
    void logits(int begin, int end, float *out);
    // One token for each of the first output rows of the last forward; samplers[i] is advanced.
    void sample(std::span<Sampler *const> samplers, std::int32_t *out);
    // The tokens that follow in each sequence: those of its draft that the sampler chooses too, as
    // if one at a time, and the choice after them. The first output rows are the drafts' in order.
    void verify(std::span<const Draft> drafts, std::vector<std::vector<std::int32_t>> *out);

    int output_count() const { return outputs_; }
    int threads() const { return pool_.threads(); }
    const Head &head() const { return *head_; }
    // Why what the last call computed is worth nothing, if a row of a table could not be read.
    std::optional<int> take_failure();
    // Of the last forward's output row: what the head multiplies, [hidden_size].
    const float *hidden(int row) const {
        return hidden_out_.data() + std::ptrdiff_t{row} * hidden_stride_;
    }
    std::size_t kv_bytes() const { return attention_.kv_bytes(); }
    // Keys and values of a block, to be kept elsewhere and put back.
    std::span<unsigned char> kv_block(int block) { return attention_.block(block); }
    // Keys and values of a head, since the start, that were cut to the range of float16.
    std::uint64_t cut() const { return attention_.cut(); }
    // Of every layer of a relu² model; and the tokens that it is of.
    const std::vector<Activity> &activity() const { return activity_; }
    std::uint64_t tokens_seen() const { return tokens_seen_; }
    const Config &config() const { return config_; }
    const Capacity &capacity() const { return capacity_; }
    // Threads that a forward of so many tokens takes, if they are the first of their sequences.
    int threads_for(int tokens) const { return pool_.threads_for(step_ns(tokens)); }

  private:
    // Of few tokens, one stream of weights is wanted; of many, a thread's own groups of rows.
    static constexpr int kFewTokens = 16, kGatedGroups = 8;
    struct Job {
        const Projection *projection;
        float *out;
        int stride;
    };
    const float *copy_gain(const float *gain, int n);
    void embed(const Batch &batch);
    void rotations(const Batch &batch);
    template <typename Function> void each_token(int floats, Function function);
    void normalise(const float *x, int stride, const float *gain, int n);
    void quantise(const float *x, int stride, const float *gain, int n, float eps);
    void project(const float *x, int stride, const float *gain, int n,
                 std::initializer_list<Job> jobs, bool gated = false);
    void project_into_stream(const float *x, int stride, const float *gain, int n,
                             const Projection &projection, const float *post_norm);
    void multiply(const Job *begin, const Job *end, bool accumulate, bool gated);
    void adapt(const float *x, int stride, const float *gain, const Job *begin, const Job *end);
    void make_adapters();
    void gate_apart();
    void multiply_columns(const Job &job, bool accumulate);
    bool all_is_faster(const Ternary &w, double share) const;
    void skip_closed(const Ternary &up_proj, int row, int count, void *scratch);
    void count_codes();
    void rotate_and_store(int layer);
    void outputs(const Batch &batch);
    unsigned char *scratch_of(int thread) const {
        return scratch_.data() + static_cast<std::size_t>(thread) * kScratchBytes;
    }
    double ns_of(const Ternary &w) const;
    double step_ns(int tokens) const;
    // Rows of up_proj behind closed gates, and columns of down_proj that meet zeros.
    bool skips() const { return weights_.layers[0].up_proj.weight.order == Order::rows; }
    bool counts() const { return config_.hidden_act == Activation::relu2 && !in_groups(); }
    bool in_groups() const { return weights_.layers[0].q_proj.weight.group_scales.data; }

    Config config_;
    Weights weights_;
    Capacity capacity_;
    const Kernels &k_;
    Pool pool_;
    Attention attention_;
    Rows embeddings_;
    std::optional<Head> head_;
    std::optional<Adapters> adapters_; // where any matrix has one
    std::vector<Array<float>> gains_;  // padded copies
    int tokens_ = 0, outputs_ = 0;
    int head_pad_, hidden_stride_, q_stride_, kv_stride_, ffn_stride_;
    Array<float> x_, q_, gate_, up_, hidden_out_;
    // Rotated queries, keys and values of a layer, in the room of gate_, which comes when they are
    // gone.
    float *heads_, *k_out_, *v_;
    Array<float> normed_, added_;  // a norm's output; what is added to x_ after its norm
    Array<float> cos_[2], sin_[2]; // of full and of sliding layers
    Array<std::int8_t> codes_;
    Array<float> code_scales_;
    Array<std::int32_t> code_sums_;
    Activations quantised_{};      // what lies in these three
    Array<unsigned char> scratch_; // kScratchBytes a thread
    // Where gates are mostly closed: codes in the order in which rows of up_proj meet them, and
    // sums over columns of down_proj, a thread's own.
    Array<std::int8_t> spread_;
    Array<std::int32_t> sums_;
    std::vector<Activity> activity_;
    std::uint64_t tokens_seen_ = 0;
    std::atomic<std::uint64_t> open_gates_{0}, nonzero_codes_{0}; // of the layer at work
};

// `floats`: that function works on.
template <typename Function> void Decoder::each_token(int floats, Function function) {
    const double ns = k_.ns_of_floats(1.0 * tokens_ * floats);
    pool_.split(tokens_, ns, [&](int begin, int end, int) {
        for (int t = begin; t < end; ++t) function(std::ptrdiff_t{t});
    });
}

} // namespace trilobit
