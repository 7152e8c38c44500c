// Attention over the KV cache: which queries of a batch share a pass over which keys, and how what
// they saw in spans of keys is merged.
//
// A query's result depends on its own sequence only: its keys are cut into the same spans, merged
// in the same order, whatever queries share the pass and whichever thread does it.
#pragma once

#include "batch.h"
#include "config.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace trilobit {

class Attention {
  public:
    // `kernels` and `pool` must outlive this.
    Attention(const Config &config, const Capacity &capacity, const Kernels &kernels, Pool &pool);

    // Cut a batch into items of work, the same for every layer.
    void plan(const Batch &batch);
    // Put the key, rotated, and the value of a token into the cache: [head_dim], zeros up to
    // kFloatPad.
    void store(int layer, int token, int kv_head, const float *key, const float *value);
    // out[token * out_stride + head * head_dim] = what the query sees among the keys up to its own
    // position, or among the last `window` of them where that is not 0. Queries are rotated and
    // scaled: [token][head][head_dim padded to kFloatPad].
    void run(int layer, int window, const float *queries, float *out, int out_stride);

    std::size_t kv_bytes() const { return kv_.size(); }
    // The keys and values of all layers of a block.
    std::span<unsigned char> block(int number) {
        return {block(0, false, number, 0), static_cast<std::size_t>(layers_) * kv_heads_ * 2 *
                                                kv_block_bytes(kv_type_, head_pad_)};
    }
    // Keys and values of a head, since the start, that were cut to the range of float16.
    std::uint64_t cut() const { return cut_; }
    // About how long one thread takes for a layer of the planned batch.
    double ns() const { return k_.ns_of_floats(floats_); }

  private:
    // Queries of one KV head that share a pass over its keys.
    struct Item {
        int token, tokens;
        int kv_head;
        int head, heads; // of the query heads that belong to kv_head
        int spans;
    };
    // What the queries of an item saw in one span, or in all up to one.
    struct Partial {
        float maximum[kMaxQueries];
        float sum[kMaxQueries];
    };
    // The layer in work.
    struct Pass {
        int layer, window;
        const float *queries;
        float *out;
        int out_stride;
    };

    void see(const Item &item, int span, Partial *partial, float *weighted, int thread);
    template <typename SpanResult>
    void merge(const Item &item, Partial *running, float *running_weighted, SpanResult result);
    void fold(const Item &item, const Partial &partial, const float *weighted, int span,
              Partial *running, float *running_weighted);
    void write(const Item &item, const Partial &running, const float *weighted);
    // The first position that the token sees.
    int first_visible(int token) const {
        return pass_.window ? std::max(position(token) - pass_.window + 1, 0) : 0;
    }
    int position(int token) const { return batch_.positions[static_cast<std::size_t>(token)]; }
    int sequence(int token) const { return batch_.sequence[static_cast<std::size_t>(token)]; }
    const std::int32_t *block_table(int token) const {
        return batch_.block_tables + std::ptrdiff_t{sequence(token)} * batch_.table_stride;
    }
    unsigned char *block(int layer, bool value, int block, int kv_head) const;
    float *scratch(int thread) const {
        return scratch_.data() + thread * (item_floats(kMaxQueries) + kApart);
    }
    std::ptrdiff_t item_floats(int queries) const { return std::ptrdiff_t{queries} * head_pad_; }

    // Floats between the scratch of threads: where one's begins with what the machine fetches ahead
    // for its neighbour, attention took up to a quarter longer.
    static constexpr int kApart = 1024;

    const Kernels &k_;
    Pool &pool_;
    KvType kv_type_;
    int layers_, heads_, kv_heads_, head_dim_, head_pad_;
    Array<unsigned char> kv_;
    std::atomic<std::uint64_t> cut_{0};
    Batch batch_{};
    Pass pass_{};
    std::vector<Item> items_;
    double floats_ = 0; // of keys and values that queries meet, in a layer without a window
    int item_queries_ = kMaxQueries; // at most
    int longest_spans_ = 1;
    bool by_span_ = false; // few items: their spans are shared out, and merged when all are done
    std::vector<Partial> partials_;
    Array<float> weighted_;
    Array<float> scratch_; // a block as floats, or the running result of an item; for each thread
};

} // namespace trilobit
