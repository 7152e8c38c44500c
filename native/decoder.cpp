#include "decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace trilobit {
namespace {

constexpr int kSampleRows = 8; // rows of logits held at once while sampling
// Items below this many a thread are cut into spans, so that a long context keeps all threads busy.
constexpr int kItemsPerThread = 4;

} // namespace

Decoder::Decoder(const Config &config, const Weights &weights, const Capacity &capacity,
                 const Kernels &kernels)
    : config_(config), weights_(weights), capacity_(capacity), k_(kernels),
      pool_(capacity.threads) {
    const Config &c = config_;
    const int q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
    head_pad_ = round_up(c.head_dim, kFloatPad);
    hidden_stride_ = round_up(c.hidden_size, kFloatPad);
    q_stride_ = round_up(q, kFloatPad);
    kv_stride_ = round_up(kv, kFloatPad);
    ffn_stride_ = round_up(c.intermediate_size, kFloatPad);
    code_stride_ = round_up(std::max({c.hidden_size, q, c.intermediate_size}), kColumns);

    const std::size_t n = static_cast<std::size_t>(capacity.batch_tokens);
    const std::size_t threads = static_cast<std::size_t>(pool_.threads());
    x_ = Array<float>(n * hidden_stride_);
    q_ = Array<float>(n * q_stride_);
    k_out_ = Array<float>(n * kv_stride_);
    v_ = Array<float>(n * kv_stride_);
    heads_ = Array<float>(n * c.num_attention_heads * head_pad_);
    gate_ = Array<float>(n * ffn_stride_);
    up_ = Array<float>(n * ffn_stride_);
    cos_ = Array<float>(n * c.head_dim / 2);
    sin_ = Array<float>(n * c.head_dim / 2);
    hidden_out_ = Array<float>(n * hidden_stride_);
    codes_ = Array<std::int8_t>(n * code_stride_);
    code_scales_ = Array<float>(n);
    code_sums_ = Array<std::int32_t>(n);
    scratch_ = Array<unsigned char>(threads * kScratchBytes);
    kv_ = Array<unsigned char>(std::size_t{2} * c.num_hidden_layers * capacity.kv_blocks *
                               c.num_key_value_heads * head_pad_ * kKvBlock *
                               size_of(capacity.kv_type));

    const int group = c.num_attention_heads / c.num_key_value_heads;
    const int parts = (group + kMaxQueries - 1) / kMaxQueries;
    items_.reserve(n * c.num_key_value_heads * parts);
    // Either every thread keeps the running result of one item, or few items keep all their spans.
    const std::size_t spans = static_cast<std::size_t>(capacity.kv_blocks) * kKvBlock / kSpan + 1;
    const std::size_t partials = std::max(2 * threads, kItemsPerThread * threads * spans);
    partials_.resize(partials);
    weighted_ = Array<float>(partials * kMaxQueries * head_pad_);

    weights_.norm = copy_gain(weights.norm, c.hidden_size);
    for (Layer &layer : weights_.layers) {
        layer.input_layernorm = copy_gain(layer.input_layernorm, c.hidden_size);
        layer.post_attention_layernorm = copy_gain(layer.post_attention_layernorm, c.hidden_size);
        layer.attn_sub_norm = copy_gain(layer.attn_sub_norm, q);
        layer.ffn_sub_norm = copy_gain(layer.ffn_sub_norm, c.intermediate_size);
    }
    gains_.emplace_back(static_cast<std::size_t>(c.head_dim) / 2);
    std::copy_n(weights.inv_freq, c.head_dim / 2, gains_.back().data());
    weights_.inv_freq = gains_.back().data();
    head_.emplace(weights_.lm_head, weights_.screen, pool_.threads(),
                  std::min(capacity.batch_tokens, kSampleRows));
}

// Kernels read whole vectors, a file's gains end where they end.
const float *Decoder::copy_gain(const float *gain, int n) {
    gains_.emplace_back(static_cast<std::size_t>(round_up(n, kFloatPad)));
    std::copy_n(gain, n, gains_.back().data());
    return gains_.back().data();
}

void Decoder::forward(const Batch &batch) {
    const Config &c = config_;
    const Pool::Step step(pool_);
    tokens_ = static_cast<int>(batch.token_ids.size());
    embed(batch);
    rotations(batch);
    plan_attention(batch);
    float *x = x_.data(), *q = q_.data(), *k = k_out_.data(), *v = v_.data();
    float *gate = gate_.data(), *up = up_.data();
    for (int n = 0; n < c.num_hidden_layers; ++n) {
        const Layer &l = weights_.layers[static_cast<std::size_t>(n)];
        quantise(x, hidden_stride_, l.input_layernorm, c.hidden_size);
        multiply({{&l.q_proj, q, q_stride_, false},
                  {&l.k_proj, k, kv_stride_, false},
                  {&l.v_proj, v, kv_stride_, false}},
                 false);
        store(batch, n);
        attention(batch, n);
        quantise(q, q_stride_, l.attn_sub_norm, c.num_attention_heads * c.head_dim);
        multiply({{&l.o_proj, x, hidden_stride_, true}}, false);
        quantise(x, hidden_stride_, l.post_attention_layernorm, c.hidden_size);
        multiply({{&l.gate_proj, gate, ffn_stride_, false}, {&l.up_proj, up, ffn_stride_, false}},
                 true);
        quantise(gate, ffn_stride_, l.ffn_sub_norm, c.intermediate_size);
        multiply({{&l.down_proj, x, hidden_stride_, true}}, false);
    }
    outputs(batch);
}

void Decoder::embed(const Batch &batch) {
    pool_.split(tokens_, [&](int begin, int end, int) {
        for (int t = begin; t < end; ++t)
            k_.embed(weights_.embed_tokens, batch.token_ids[static_cast<std::size_t>(t)],
                     x_.data() + std::ptrdiff_t{t} * hidden_stride_);
    });
}

// cos and sin of position * inv_freq, a row a token. The angle is rounded to float32 first, as the
// reference implementation does.
void Decoder::rotations(const Batch &batch) {
    const int half = config_.head_dim / 2;
    pool_.split(tokens_, [&](int begin, int end, int) {
        for (int t = begin; t < end; ++t)
            for (int i = 0; i < half; ++i) {
                const float angle =
                    static_cast<float>(batch.positions[static_cast<std::size_t>(t)]) *
                    weights_.inv_freq[i];
                cos_[std::ptrdiff_t{t} * half + i] = static_cast<float>(std::cos(double{angle}));
                sin_[std::ptrdiff_t{t} * half + i] = static_cast<float>(std::sin(double{angle}));
            }
    });
}

void Decoder::quantise(const float *x, int stride, const float *gain, int n) {
    pool_.split(tokens_, [&](int begin, int end, int) {
        for (int t = begin; t < end; ++t)
            k_.norm_quantise(x + std::ptrdiff_t{t} * stride, gain, n, config_.rms_norm_eps,
                             codes_.data() + std::ptrdiff_t{t} * code_stride_,
                             round_up(n, kColumns), &code_scales_[t], &code_sums_[t]);
    });
}

// The quantised tokens times several matrices in one parallel part. `gated`: the jobs are gate and
// up of the same shape, and gate becomes relu(gate)² * up where the thread has just written both.
void Decoder::multiply(std::initializer_list<Job> jobs, bool gated) {
    const Activations x{codes_.data(), code_scales_.data(), code_sums_.data(), tokens_,
                        code_stride_};
    const int n = pool_.threads();
    pool_.run([&](int thread) {
        void *scratch = scratch_.data() + static_cast<std::size_t>(thread) * kScratchBytes;
        for (const Job &job : jobs) {
            const int groups = job.w->groups();
            k_.linear(*job.w, x, Pool::share(groups, thread, n), Pool::share(groups, thread + 1, n),
                      job.out, job.stride, job.accumulate, scratch);
        }
        if (!gated) return;
        const Job &gate = *jobs.begin(), &up = *(jobs.begin() + 1);
        const int groups = gate.w->groups();
        const int begin = Pool::share(groups, thread, n) * kRows;
        const int end = std::min(Pool::share(groups, thread + 1, n) * kRows, gate.w->rows);
        for (int t = 0; t < tokens_ && begin < end; ++t)
            k_.relu2_gate(gate.out + std::ptrdiff_t{t} * gate.stride + begin,
                          up.out + std::ptrdiff_t{t} * up.stride + begin, end - begin);
    });
}

unsigned char *Decoder::kv_block(int layer, bool value, int block, int kv_head) const {
    const std::size_t index = ((std::size_t{2} * layer + value) * capacity_.kv_blocks + block) *
                                  config_.num_key_value_heads +
                              kv_head;
    return kv_.data() + index * head_pad_ * kKvBlock * size_of(capacity_.kv_type);
}

// Rotate queries and keys; put keys and values into the cache.
void Decoder::store(const Batch &batch, int layer) {
    const Config &c = config_;
    const int half = c.head_dim / 2;
    const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    pool_.split(tokens_, [&](int begin, int end, int thread) {
        float *padded = reinterpret_cast<float *>(scratch_.data() +
                                                  static_cast<std::size_t>(thread) * kScratchBytes);
        std::fill_n(padded, head_pad_, 0.0f);
        for (int t = begin; t < end; ++t) {
            const std::size_t i = static_cast<std::size_t>(t);
            const float *cos = cos_.data() + std::ptrdiff_t{t} * half;
            const float *sin = sin_.data() + std::ptrdiff_t{t} * half;
            for (int h = 0; h < c.num_attention_heads; ++h) {
                float *to =
                    heads_.data() + (std::ptrdiff_t{t} * c.num_attention_heads + h) * head_pad_;
                k_.rope(q_.data() + std::ptrdiff_t{t} * q_stride_ + h * c.head_dim, cos, sin, half,
                        to);
                for (int d = 0; d < c.head_dim; ++d) to[d] *= scale;
            }
            const int position = batch.positions[i];
            const int block =
                batch.block_tables[std::ptrdiff_t{batch.sequence[i]} * batch.table_stride +
                                   position / kKvBlock];
            for (int h = 0; h < c.num_key_value_heads; ++h) {
                const std::ptrdiff_t at = std::ptrdiff_t{t} * kv_stride_ + h * c.head_dim;
                k_.rope(k_out_.data() + at, cos, sin, half, padded);
                k_.store_key(padded, head_pad_, kv_block(layer, false, block, h),
                             position % kKvBlock, capacity_.kv_type);
                std::copy_n(v_.data() + at, c.head_dim, padded);
                k_.store_value(padded, head_pad_, kv_block(layer, true, block, h),
                               position % kKvBlock, capacity_.kv_type);
            }
        }
    });
}

// Cut the batch into items of at most kMaxQueries queries; the same for every layer.
void Decoder::plan_attention(const Batch &batch) {
    const Config &c = config_;
    const int group = c.num_attention_heads / c.num_key_value_heads;
    const int heads = std::min(group, kMaxQueries);
    const int tile = std::max(1, kMaxQueries / group);
    items_.clear();
    longest_spans_ = 1;
    for (int t = 0; t < tokens_;) {
        int count = 1;
        while (count < tile && t + count < tokens_ &&
               batch.sequence[static_cast<std::size_t>(t + count)] ==
                   batch.sequence[static_cast<std::size_t>(t)])
            ++count;
        const int last = batch.positions[static_cast<std::size_t>(t + count - 1)];
        const int spans = last / kSpan + 1;
        longest_spans_ = std::max(longest_spans_, spans);
        for (int h = 0; h < c.num_key_value_heads; ++h)
            for (int part = 0; part < group; part += heads)
                items_.push_back(
                    {t, count, h, h * group + part, std::min(heads, group - part), spans});
        t += count;
    }
    const std::size_t few = static_cast<std::size_t>(kItemsPerThread * pool_.threads());
    by_span_ = longest_spans_ > 1 && items_.size() <= few &&
               items_.size() * static_cast<std::size_t>(longest_spans_) <= partials_.size();
}

void Decoder::attention(const Batch &batch, int layer) {
    const std::ptrdiff_t width = std::ptrdiff_t{kMaxQueries} * head_pad_;
    const int items = static_cast<int>(items_.size());
    const auto fold_all = [&](const Item &item, Partial *running, float *running_weighted,
                              auto &&span_result) {
        std::fill_n(running->maximum, kMaxQueries, -std::numeric_limits<float>::infinity());
        std::fill_n(running->sum, kMaxQueries, 0.0f);
        std::fill_n(running_weighted, width, 0.0f);
        for (int span = 0; span < item.spans; ++span) {
            const auto [partial, weighted] = span_result(span);
            fold(item, *partial, weighted, span, running, running_weighted);
        }
        write_attention(item, *running, running_weighted);
    };
    positions_ = batch.positions.data();
    if (!by_span_) {
        pool_.each(items, [&](int i, int thread) {
            const Item &item = items_[static_cast<std::size_t>(i)];
            Partial *own = partials_.data() + 2 * thread;
            float *weighted = weighted_.data() + 2 * thread * width;
            fold_all(item, own, weighted, [&](int span) {
                attend(batch, layer, item, span, own + 1, weighted + width);
                return std::pair(own + 1, weighted + width);
            });
        });
        return;
    }
    pool_.each(items * longest_spans_, [&](int i, int) {
        const Item &item = items_[static_cast<std::size_t>(i / longest_spans_)];
        if (i % longest_spans_ < item.spans)
            attend(batch, layer, item, i % longest_spans_, &partials_[static_cast<std::size_t>(i)],
                   weighted_.data() + i * width);
    });
    pool_.each(items, [&](int i, int thread) {
        const Item &item = items_[static_cast<std::size_t>(i)];
        Partial running;
        float *running_weighted = reinterpret_cast<float *>(
            scratch_.data() + static_cast<std::size_t>(thread) * kScratchBytes);
        fold_all(item, &running, running_weighted, [&](int span) {
            const int at = i * longest_spans_ + span;
            return std::pair(&partials_[static_cast<std::size_t>(at)],
                             weighted_.data() + at * width);
        });
    });
}

// Query i of an item is head `head + i % heads` of token `token + i / heads`.
void Decoder::attend(const Batch &batch, int layer, const Item &item, int span, Partial *partial,
                     float *weighted) {
    const float *queries[kMaxQueries];
    int visible[kMaxQueries];
    const void *keys[kSpan / kKvBlock], *values[kSpan / kKvBlock];
    const int count = item.tokens * item.heads;
    int longest = 0;
    for (int i = 0; i < count; ++i) {
        const int token = item.token + i / item.heads, head = item.head + i % item.heads;
        queries[i] = heads_.data() +
                     (std::ptrdiff_t{token} * config_.num_attention_heads + head) * head_pad_;
        visible[i] = std::min(positions_[token] + 1 - span * kSpan, kSpan);
        longest = std::max(longest, visible[i]);
    }
    const std::int32_t *table =
        batch.block_tables +
        std::ptrdiff_t{batch.sequence[static_cast<std::size_t>(item.token)]} * batch.table_stride;
    for (int b = 0; b * kKvBlock < longest; ++b) {
        const int block = table[span * (kSpan / kKvBlock) + b];
        keys[b] = kv_block(layer, false, block, item.kv_head);
        values[b] = kv_block(layer, true, block, item.kv_head);
    }
    k_.attend({queries, visible, count, keys, values, head_pad_, partial->maximum, partial->sum,
               weighted},
              capacity_.kv_type);
}

void Decoder::fold(const Item &item, const Partial &partial, const float *weighted, int span,
                   Partial *running, float *running_weighted) {
    for (int i = 0; i < item.tokens * item.heads; ++i) {
        if (positions_[item.token + i / item.heads] < span * kSpan) continue; // sees none of it
        const std::ptrdiff_t at = std::ptrdiff_t{i} * head_pad_;
        k_.merge(&running->maximum[i], &running->sum[i], running_weighted + at, partial.maximum[i],
                 partial.sum[i], weighted + at, head_pad_);
    }
}

void Decoder::write_attention(const Item &item, const Partial &running, const float *weighted) {
    float out[1024];
    for (int i = 0; i < item.tokens * item.heads; ++i) {
        const int token = item.token + i / item.heads, head = item.head + i % item.heads;
        k_.finish(weighted + std::ptrdiff_t{i} * head_pad_, running.sum[i], head_pad_, out);
        std::copy_n(out, config_.head_dim,
                    q_.data() + std::ptrdiff_t{token} * q_stride_ + head * config_.head_dim);
    }
}

void Decoder::outputs(const Batch &batch) {
    outputs_ = static_cast<int>(batch.output_rows.size());
    pool_.split(outputs_, [&](int begin, int end, int) {
        for (int i = begin; i < end; ++i)
            k_.norm(x_.data() + std::ptrdiff_t{batch.output_rows[static_cast<std::size_t>(i)]} *
                                    hidden_stride_,
                    weights_.norm, config_.hidden_size, config_.rms_norm_eps,
                    hidden_out_.data() + std::ptrdiff_t{i} * hidden_stride_);
    });
}

void Decoder::logits(int begin, int end, float *out) {
    const Pool::Step step(pool_);
    head_->logits(k_, pool_, hidden_out_.data() + std::ptrdiff_t{begin} * hidden_stride_,
                  hidden_stride_, end - begin, out);
}

void Decoder::sample(std::span<Sampler *const> samplers, std::int32_t *out) {
    const Pool::Step step(pool_);
    for (int begin = 0; begin < outputs_; begin += kSampleRows) {
        const int count = std::min(kSampleRows, outputs_ - begin);
        head_->sample(
            k_, pool_, hidden_out_.data() + std::ptrdiff_t{begin} * hidden_stride_, hidden_stride_,
            samplers.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count)),
            out + begin);
    }
}

void Decoder::verify(std::span<const Draft> drafts, std::vector<std::vector<std::int32_t>> *out) {
    // Every row is chosen at once by a sampler that takes the draft up to there for granted. Those
    // read the sequence's own sampler, which goes on only when all are done.
    std::vector<Sampler> ahead;
    std::vector<Sampler *> samplers;
    ahead.reserve(static_cast<std::size_t>(outputs_));
    for (const Draft &draft : drafts) {
        if (draft.tokens.empty()) {
            samplers.push_back(draft.sampler);
            continue;
        }
        for (std::size_t i = 0; i <= draft.tokens.size(); ++i)
            samplers.push_back(&ahead.emplace_back(draft.sampler->after(draft.tokens.first(i))));
    }
    std::vector<std::int32_t> chosen(samplers.size());
    sample(samplers, chosen.data());
    out->clear();
    auto row = chosen.cbegin();
    for (const Draft &draft : drafts) {
        const auto [wrong, _] = std::mismatch(draft.tokens.begin(), draft.tokens.end(), row);
        const auto end = row + (wrong - draft.tokens.begin()) + 1;
        out->emplace_back(row, end);
        if (!draft.tokens.empty())
            for (const std::int32_t id : out->back()) draft.sampler->accept(id);
        row += static_cast<std::ptrdiff_t>(draft.tokens.size()) + 1;
    }
}

} // namespace trilobit
