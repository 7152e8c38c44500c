#include "attention.h"

#include <limits>
#include <utility>

namespace trilobit {
namespace {

// Items below this many a thread are cut into spans, so that a long context keeps all threads busy.
constexpr int kItemsPerThread = 4;
// Queries of an item then, and where larger items would be too few to share out.
constexpr int kFewQueries = 8;
static_assert(kKvBlock <= kMaxQueries); // scratch holds either

} // namespace

Attention::Attention(const Config &config, const Capacity &capacity, const Kernels &kernels,
                     Pool &pool)
    : k_(kernels), pool_(pool), kv_type_(capacity.kv_type), layers_(config.num_hidden_layers),
      heads_(config.num_attention_heads), kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim), head_pad_(round_up(config.head_dim, kFloatPad)) {
    kv_ = Array<unsigned char>(std::size_t{2} * layers_ * capacity.kv_blocks * kv_heads_ *
                               kv_block_bytes(kv_type_, head_pad_));
    const std::size_t threads = static_cast<std::size_t>(pool.threads());
    const int group = heads_ / kv_heads_, parts = (group + kFewQueries - 1) / kFewQueries;
    items_.reserve(static_cast<std::size_t>(capacity.batch_tokens) * kv_heads_ * parts);
    // Either every thread keeps the running result of one item, or few items keep all their spans.
    const std::size_t spans = static_cast<std::size_t>(capacity.kv_blocks) * kKvBlock / kSpan + 1;
    const std::size_t partials = kItemsPerThread * threads * spans;
    partials_.resize(std::max(2 * threads, partials));
    weighted_ =
        Array<float>(std::max(2 * threads * kMaxQueries, partials * kFewQueries) * head_pad_);
    scratch_ = Array<float>(threads * static_cast<std::size_t>(item_floats(kMaxQueries) + kApart));
}

unsigned char *Attention::block(int layer, bool value, int block, int kv_head) const {
    // All layers of a block lie together, so that large pages are used as blocks are.
    const std::size_t layers = static_cast<std::size_t>(layers_);
    const std::size_t heads = static_cast<std::size_t>(kv_heads_);
    const std::size_t index =
        ((static_cast<std::size_t>(block) * layers + static_cast<std::size_t>(layer)) * heads +
         static_cast<std::size_t>(kv_head)) *
            2 +
        value;
    return kv_.data() + index * kv_block_bytes(kv_type_, head_pad_);
}

void Attention::store(int layer, int token, int kv_head, const float *key, const float *value) {
    const int at = block_table(token)[position(token) / kKvBlock];
    const int slot = position(token) % kKvBlock;
    const int cut =
        k_.store_key(key, head_pad_, block(layer, false, at, kv_head), slot, kv_type_) +
        k_.store_value(value, head_pad_, block(layer, true, at, kv_head), slot, kv_type_);
    if (cut) cut_.fetch_add(static_cast<std::uint64_t>(cut), std::memory_order_relaxed);
}

// Few large items would leave threads without work.
void Attention::plan(const Batch &batch) {
    batch_ = batch;
    const int tokens = static_cast<int>(batch.positions.size()), group = heads_ / kv_heads_;
    const int large = tokens * heads_ / kMaxQueries;
    item_queries_ = large >= 2 * kItemsPerThread * pool_.threads() ? kMaxQueries : kFewQueries;
    const int heads = std::min(group, item_queries_);
    const int tile = std::max(1, item_queries_ / group);
    items_.clear();
    floats_ = 0;
    longest_spans_ = 1;
    for (int t = 0; t < tokens;) {
        int count = 1;
        while (count < tile && t + count < tokens && sequence(t + count) == sequence(t)) ++count;
        const int spans = position(t + count - 1) / kSpan + 1;
        longest_spans_ = std::max(longest_spans_, spans);
        for (int h = 0; h < kv_heads_; ++h)
            for (int part = 0; part < group; part += heads)
                items_.push_back(
                    {t, count, h, h * group + part, std::min(heads, group - part), spans});
        floats_ += 2.0 * count * heads_ * head_dim_ * (position(t + count - 1) + 1);
        t += count;
    }
    const std::size_t few = static_cast<std::size_t>(kItemsPerThread * pool_.threads());
    by_span_ = longest_spans_ > 1 && item_queries_ == kFewQueries && items_.size() <= few &&
               items_.size() * static_cast<std::size_t>(longest_spans_) <= partials_.size();
}

void Attention::run(int layer, int window, const float *queries, float *out, int out_stride) {
    pass_ = {layer, window, queries, out, out_stride};
    const std::ptrdiff_t width = item_floats(item_queries_);
    const int items = static_cast<int>(items_.size());
    if (!by_span_) {
        pool_.each(items, ns(), [&](int i, int thread) {
            const Item &item = items_[static_cast<std::size_t>(i)];
            Partial *running = partials_.data() + 2 * thread, *one = running + 1;
            float *weighted = weighted_.data() + 2 * thread * width;
            merge(item, running, weighted, [&](int span) {
                see(item, span, one, weighted + width, thread);
                return std::pair(one, weighted + width);
            });
        });
        return;
    }
    const auto result = [&](int item, int span) {
        const int at = item * longest_spans_ + span;
        return std::pair(&partials_[static_cast<std::size_t>(at)], weighted_.data() + at * width);
    };
    pool_.each(items * longest_spans_, ns(), [&](int i, int thread) {
        const Item &item = items_[static_cast<std::size_t>(i / longest_spans_)];
        const int span = i % longest_spans_;
        if (span >= item.spans || span < first_visible(item.token) / kSpan) return;
        const auto [partial, weighted] = result(i / longest_spans_, span);
        see(item, span, partial, weighted, thread);
    });
    pool_.each(items, ns() / kSpan, [&](int i, int thread) {
        Partial running;
        merge(items_[static_cast<std::size_t>(i)], &running, scratch(thread),
              [&](int span) { return result(i, span); });
    });
}

// Write what an item saw in all its spans, from result(span): a Partial and the weighted values.
template <typename SpanResult>
void Attention::merge(const Item &item, Partial *running, float *running_weighted,
                      SpanResult result) {
    const int first = first_visible(item.token) / kSpan;
    if (item.spans - first == 1) { // nothing to merge
        const auto [partial, weighted] = result(first);
        return write(item, *partial, weighted);
    }
    std::fill_n(running->maximum, kMaxQueries, -std::numeric_limits<float>::infinity());
    std::fill_n(running->sum, kMaxQueries, 0.0f);
    std::fill_n(running_weighted, item_floats(item_queries_), 0.0f);
    for (int span = first; span < item.spans; ++span) {
        const auto [partial, weighted] = result(span);
        fold(item, *partial, weighted, span, running, running_weighted);
    }
    write(item, *running, running_weighted);
}

// One span of keys, as the queries of an item see it. Query i is head `head + i % heads` of token
// `token + i / heads`.
void Attention::see(const Item &item, int span, Partial *partial, float *weighted, int thread) {
    const float *queries[kMaxQueries];
    int first[kMaxQueries], visible[kMaxQueries];
    const void *keys[kSpan / kKvBlock], *values[kSpan / kKvBlock];
    const int count = item.tokens * item.heads;
    int longest = 0;
    for (int i = 0; i < count; ++i) {
        const int token = item.token + i / item.heads, head = item.head + i % item.heads;
        queries[i] = pass_.queries + (std::ptrdiff_t{token} * heads_ + head) * head_pad_;
        first[i] = first_visible(token) - span * kSpan;
        visible[i] = std::min(position(token) + 1 - span * kSpan, kSpan);
        longest = std::max(longest, visible[i]);
    }
    const std::int32_t *table = block_table(item.token) + span * (kSpan / kKvBlock);
    for (int b = 0; b * kKvBlock < longest; ++b) {
        keys[b] = block(pass_.layer, false, table[b], item.kv_head);
        values[b] = block(pass_.layer, true, table[b], item.kv_head);
    }
    k_.attend({queries, first, visible, count, keys, values, head_pad_, partial->maximum,
               partial->sum, weighted, scratch(thread)},
              kv_type_);
}

void Attention::fold(const Item &item, const Partial &partial, const float *weighted, int span,
                     Partial *running, float *running_weighted) {
    for (int i = 0; i < item.tokens * item.heads; ++i) {
        const int token = item.token + i / item.heads;
        if (position(token) < span * kSpan || first_visible(token) >= (span + 1) * kSpan)
            continue; // sees none of it
        const std::ptrdiff_t at = std::ptrdiff_t{i} * head_pad_;
        k_.merge(&running->maximum[i], &running->sum[i], running_weighted + at, partial.maximum[i],
                 partial.sum[i], weighted + at, head_pad_);
    }
}

void Attention::write(const Item &item, const Partial &running, const float *weighted) {
    float out[kMaxHeadDim];
    for (int i = 0; i < item.tokens * item.heads; ++i) {
        const int token = item.token + i / item.heads, head = item.head + i % item.heads;
        k_.finish(weighted + std::ptrdiff_t{i} * head_pad_, running.sum[i], head_pad_, out);
        std::copy_n(out, head_dim_,
                    pass_.out + std::ptrdiff_t{token} * pass_.out_stride + head * head_dim_);
    }
}

} // namespace trilobit
