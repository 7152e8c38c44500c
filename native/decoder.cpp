#include "decoder.h"
#include "turn.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trilobit {
namespace {

constexpr int kSampleRows = 8; // rows of logits held at once while sampling
constexpr int kSines = 32;     // floats that cost as much as a sine and a cosine

} // namespace

Decoder::Decoder(const Config &config, const Weights &weights, const Capacity &capacity,
                 const Kernels &kernels)
    : config_(config), weights_(weights), capacity_(capacity), k_(kernels), pool_(capacity.threads),
      attention_(config, capacity, kernels, pool_),
      embeddings_(weights.embed_tokens, capacity.threads) {
    if (config.query_pre_attn_scalar == 0)
        config_.query_pre_attn_scalar = static_cast<float>(config.head_dim);
    const Config &c = config_;
    const int q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
    head_pad_ = round_up(c.head_dim, kFloatPad);
    hidden_stride_ = round_up(c.hidden_size, kFloatPad);
    q_stride_ = round_up(q, kFloatPad);
    kv_stride_ = round_up(kv, kFloatPad);
    ffn_stride_ = round_up(c.intermediate_size, kFloatPad);

    const std::size_t n = static_cast<std::size_t>(capacity.batch_tokens);
    const std::size_t threads = static_cast<std::size_t>(pool_.threads());
    const Layer &first = weights.layers[0];
    x_ = Array<float>(n * hidden_stride_);
    q_ = Array<float>(n * q_stride_);
    const std::size_t heads = n * c.num_attention_heads * head_pad_, keys = n * kv_stride_;
    gate_ = Array<float>(std::max(n * ffn_stride_, heads + 2 * keys));
    heads_ = gate_.data();
    k_out_ = heads_ + heads;
    v_ = k_out_ + keys;
    up_ = Array<float>(std::max(std::min(n, std::size_t{kFewTokens}) * ffn_stride_,
                                threads * n * kGatedGroups * kRows));
    for (int local = 0; local <= (weights.local_inv_freq != nullptr); ++local) {
        cos_[local] = Array<float>(n * c.head_dim / 2);
        sin_[local] = Array<float>(n * c.head_dim / 2);
    }
    hidden_out_ = Array<float>(n * hidden_stride_);
    if (in_groups() || first.q_proj.norm)
        normed_ = Array<float>(n * std::max({hidden_stride_, q_stride_, ffn_stride_}));
    if (first.attn_post_norm || first.o_proj.norm) added_ = Array<float>(n * hidden_stride_);
    const int widest = std::max({c.hidden_size, q, c.intermediate_size});
    const int codes = std::max(round_up(widest, kScaleColumns), padded_columns(widest));
    const std::size_t scales = in_groups() ? n * (codes / kScaleColumns) : n;
    codes_ = Array<std::int8_t>((in_groups() ? 2 : 1) * n * codes);
    code_scales_ = Array<float>(scales);
    code_sums_ = Array<std::int32_t>(scales);
    scratch_ = Array<unsigned char>(threads * kScratchBytes);
    if (skips()) {
        spread_ = Array<std::int8_t>(n * first.up_proj.weight.line_codes());
        sums_ = Array<std::int32_t>(threads * std::min(n, std::size_t{kFewTokens}) *
                                    first.down_proj.weight.line_codes());
    }
    if (counts()) activity_.resize(weights.layers.size());

    make_adapters();

    weights_.norm = copy_gain(weights.norm, c.hidden_size);
    for (Layer &l : weights_.layers) {
        for (const float **gain : {&l.attn_norm, &l.mlp_norm, &l.attn_post_norm, &l.mlp_post_norm})
            *gain = copy_gain(*gain, c.hidden_size);
        for (const float **gain : {&l.q_norm, &l.k_norm}) *gain = copy_gain(*gain, c.head_dim);
        l.attn_sub_norm = copy_gain(l.attn_sub_norm, q);
        l.ffn_sub_norm = copy_gain(l.ffn_sub_norm, c.intermediate_size);
        l.each_projection([&](Projection &p) { p.norm = copy_gain(p.norm, p.weight.columns); });
    }
    weights_.inv_freq = copy_gain(weights.inv_freq, c.head_dim / 2);
    weights_.local_inv_freq = copy_gain(weights.local_inv_freq, c.head_dim / 2);
    head_.emplace(weights_.lm_head, weights_.ternary_lm_head, weights_.screen, pool_.threads(),
                  std::min(capacity.batch_tokens, kSampleRows));
}

// Kernels read whole vectors, a file's gains end where they end.
const float *Decoder::copy_gain(const float *gain, int n) {
    if (!gain) return nullptr;
    gains_.emplace_back(static_cast<std::size_t>(round_up(n, kFloatPad)));
    std::copy_n(gain, n, gains_.back().data());
    return gains_.back().data();
}

void Decoder::forward(const Batch &batch) {
    const Config &c = config_;
    tokens_ = static_cast<int>(batch.token_ids.size());
    attention_.plan(batch);
    const Pool::Step step(pool_, step_ns(tokens_) + c.num_hidden_layers * attention_.ns());
    embed(batch);
    rotations(batch);
    const int h = c.hidden_size, attn = c.num_attention_heads * c.head_dim,
              ffn = c.intermediate_size;
    float *x = x_.data(), *q = q_.data(), *k = k_out_, *v = v_;
    float *gate = gate_.data();
    for (int n = 0; n < c.num_hidden_layers; ++n) {
        const Layer &l = weights_.layers[static_cast<std::size_t>(n)];
        project(
            x, hidden_stride_, l.attn_norm, h,
            {{&l.q_proj, q, q_stride_}, {&l.k_proj, k, kv_stride_}, {&l.v_proj, v, kv_stride_}});
        rotate_and_store(n);
        attention_.run(n, l.sliding ? c.sliding_window : 0, heads_, q, q_stride_);
        project_into_stream(q, q_stride_, l.attn_sub_norm, attn, l.o_proj, l.attn_post_norm);
        const bool apart = l.gates_apart();
        project(x, hidden_stride_, l.mlp_norm, h,
                {{&l.gate_proj, gate, ffn_stride_},
                 {&l.up_proj, apart ? up_.data() : nullptr, ffn_stride_}},
                !apart);
        if (apart) gate_apart();
        project_into_stream(gate, ffn_stride_, l.ffn_sub_norm, ffn, l.down_proj, l.mlp_post_norm);
        if (counts()) {
            if (!skips()) count_codes(); // else they were wanted
            Activity &activity = activity_[static_cast<std::size_t>(n)];
            activity.gates += open_gates_.exchange(0);
            activity.codes += nonzero_codes_.exchange(0);
        }
    }
    tokens_seen_ += static_cast<std::uint64_t>(tokens_);
    outputs(batch);
}

// Of one token's product with a matrix. Activations of 16 bits are two of 8.
double Decoder::ns_of(const Ternary &w) const {
    return k_.ns_of_products((w.group_scales.data ? 2.0 : 1.0) * w.rows * w.columns);
}

// Of a forward but for attention.
double Decoder::step_ns(int tokens) const {
    double ns = 0;
    for (const Layer &l : weights_.layers)
        l.each_projection([&](const Projection &p) {
            ns += ns_of(p.weight) + (p.adapter.there() ? Adapters::ns(k_, p.adapter) : 0);
        });
    return tokens * ns;
}

std::optional<int> Decoder::take_failure() {
    const std::optional<int> of_embeddings = embeddings_.take_failure(),
                             of_head = head_->take_failure();
    return of_embeddings ? of_embeddings : of_head;
}

void Decoder::embed(const Batch &batch) {
    const double ns = k_.ns_of_floats(1.0 * tokens_ * config_.hidden_size);
    pool_.split(tokens_, ns, [&](int begin, int end, int thread) {
        for (std::ptrdiff_t t = begin; t < end; ++t) {
            const int id = batch.token_ids[static_cast<std::size_t>(t)];
            float *x = x_.data() + t * hidden_stride_;
            if (weights_.ternary_embed_tokens.packed)
                k_.embed_groups(weights_.ternary_embed_tokens, id, x);
            else
                k_.embed(embeddings_.row(id, thread), 0, x);
            if (config_.embedding_scale == 1) continue;
            for (int i = 0; i < config_.hidden_size; ++i) x[i] *= config_.embedding_scale;
        }
    });
}

// cos and sin of position * inv_freq, a row a token. The angle is rounded to float32 first, as the
// reference implementation does.
void Decoder::rotations(const Batch &batch) {
    const int half = config_.head_dim / 2;
    const float factor = config_.attention_factor;
    each_token(kSines * half, [&](std::ptrdiff_t t) {
        const float position = static_cast<float>(batch.positions[static_cast<std::size_t>(t)]);
        for (int local = 0; local <= (weights_.local_inv_freq != nullptr); ++local) {
            const float *inv_freq = local ? weights_.local_inv_freq : weights_.inv_freq;
            for (int i = 0; i < half; ++i) {
                const Turn turn = turn_of(position * inv_freq[i]);
                cos_[local][t * half + i] = turn.cos * factor;
                sin_[local][t * half + i] = turn.sin * factor;
            }
        }
    });
}

void Decoder::normalise(const float *x, int stride, const float *gain, int n) {
    each_token(n, [&](std::ptrdiff_t t) {
        k_.norm(x + t * stride, gain, n, config_.rms_norm_eps,
                normed_.data() + t * round_up(n, kFloatPad));
    });
}

// RMSNorm with `gain`, or nothing where that is null, then codes.
void Decoder::quantise(const float *x, int stride, const float *gain, int n, float eps) {
    const int together = in_groups() ? 2 * tokens_ : tokens_;
    quantised_ = {codes_.data(),
                  code_scales_.data(),
                  code_sums_.data(),
                  together,
                  in_groups() ? round_up(n, kScaleColumns) : padded_columns(n),
                  in_groups() ? k_.wide_tile_tokens(together) : k_.tile_tokens(together)};
    if (!in_groups()) {
        each_token(n, [&](std::ptrdiff_t t) {
            k_.norm_quantise(x + t * stride, gain, n, eps, quantised_, static_cast<int>(t));
        });
        return;
    }
    each_token(n, [&](std::ptrdiff_t t) {
        const float *from = x + t * stride;
        float *normed = normed_.data() + t * round_up(n, kFloatPad);
        if (gain) k_.norm(from, gain, n, eps, normed);
        k_.quantise_groups(gain ? normed : from, n, {quantised_}, static_cast<int>(t));
    });
}

// The inputs, normalised and quantised, times the matrices. Matrices with norms of their own
// quantise what the common norm gives once more each.
void Decoder::project(const float *x, int stride, const float *gain, int n,
                      std::initializer_list<Job> jobs, bool gated) {
    if (!jobs.begin()->projection->norm) {
        quantise(x, stride, gain, n, config_.rms_norm_eps);
        multiply(jobs.begin(), jobs.end(), false, gated);
        return adapt(x, stride, gain, jobs.begin(), jobs.end());
    }
    if (gain) {
        normalise(x, stride, gain, n);
        x = normed_.data();
        stride = round_up(n, kFloatPad);
    }
    for (const Job &job : jobs) {
        quantise(x, stride, job.projection->norm, n, config_.projection_norm_eps);
        multiply(&job, &job + 1, false, gated && &job + 1 == jobs.end());
    }
}

// The same for one matrix, whose output is added to the residual stream.
void Decoder::project_into_stream(const float *x, int stride, const float *gain, int n,
                                  const Projection &projection, const float *post_norm) {
    if (!post_norm && !projection.norm) {
        quantise(x, stride, gain, n, config_.rms_norm_eps);
        const Job job{&projection, x_.data(), hidden_stride_};
        multiply(&job, &job + 1, true, false);
        return adapt(x, stride, gain, &job, &job + 1);
    }
    project(x, stride, gain, n, {{&projection, added_.data(), hidden_stride_}});
    each_token(config_.hidden_size, [&](std::ptrdiff_t t) {
        float *stream = x_.data() + t * hidden_stride_, *added = added_.data() + t * hidden_stride_;
        if (post_norm) k_.norm(added, post_norm, config_.hidden_size, config_.rms_norm_eps, added);
        for (int i = 0; i < config_.hidden_size; ++i) stream[i] += added[i];
    });
}

// The room for adapters, where there are any.
void Decoder::make_adapters() {
    int widest = 0, rank = 0;
    bool apart = false;
    for (const Layer &l : weights_.layers) {
        apart |= l.gates_apart();
        l.each_projection([&](const Projection &p) {
            if (!p.adapter.there()) return;
            widest = std::max(widest, p.adapter.a.columns);
            rank = std::max(rank, p.adapter.a.rows);
        });
    }
    if (rank) adapters_.emplace(k_, pool_, capacity_.batch_tokens, widest, rank);
    const std::size_t up = static_cast<std::size_t>(capacity_.batch_tokens) * ffn_stride_;
    if (apart && up_.size() < up) up_ = Array<float>(up);
}

// What adapters add to the products of matrices with the same inputs, as `project` has them.
void Decoder::adapt(const float *x, int stride, const float *gain, const Job *begin,
                    const Job *end) {
    for (const Job *job = begin; job != end; ++job)
        if (job->projection->adapter.there())
            adapters_->add(job->projection->adapter, x, stride, gain, config_.rms_norm_eps, tokens_,
                           job->out, job->stride);
}

// Normalise and rotate queries and keys; put keys and values into the cache.
void Decoder::rotate_and_store(int layer) {
    const Config &c = config_;
    const Layer &l = weights_.layers[static_cast<std::size_t>(layer)];
    const int dim = c.head_dim, half = dim / 2, local = l.sliding && weights_.local_inv_freq;
    const float scale = 1.0f / std::sqrt(c.query_pre_attn_scalar);
    const double floats = 1.0 * tokens_ * (q_stride_ + 2 * kv_stride_);
    pool_.split(tokens_, k_.ns_of_floats(floats), [&](int begin, int end, int thread) {
        float *padded = reinterpret_cast<float *>(scratch_of(thread));
        float *value = padded + head_pad_, *normed = value + head_pad_;
        std::fill_n(padded, 3 * head_pad_, 0.0f);
        const auto rotate = [&](const float *x, const float *norm, std::ptrdiff_t t, float *to) {
            if (norm) { // kernels read whole vectors, a head ends where the next begins
                std::copy_n(x, dim, normed);
                k_.norm(normed, norm, dim, c.rms_norm_eps, normed);
                x = normed;
            }
            k_.rope(x, cos_[local].data() + t * half, sin_[local].data() + t * half, half, to);
        };
        for (std::ptrdiff_t t = begin; t < end; ++t) {
            for (int h = 0; h < c.num_attention_heads; ++h) {
                float *to = heads_ + (t * c.num_attention_heads + h) * head_pad_;
                std::fill(to + dim, to + head_pad_, 0.0f);
                rotate(q_.data() + t * q_stride_ + h * dim, l.q_norm, t, to);
                for (int d = 0; d < dim; ++d) to[d] *= scale;
            }
            for (int h = 0; h < c.num_key_value_heads; ++h) {
                const std::ptrdiff_t at = t * kv_stride_ + h * dim;
                rotate(k_out_ + at, l.k_norm, t, padded);
                std::copy_n(v_ + at, dim, value);
                attention_.store(layer, static_cast<int>(t), h, padded, value);
            }
        }
    });
}

void Decoder::outputs(const Batch &batch) {
    outputs_ = static_cast<int>(batch.output_rows.size());
    const double ns = k_.ns_of_floats(1.0 * outputs_ * config_.hidden_size);
    pool_.split(outputs_, ns, [&](int begin, int end, int) {
        for (int i = begin; i < end; ++i)
            k_.norm(x_.data() + std::ptrdiff_t{batch.output_rows[static_cast<std::size_t>(i)]} *
                                    hidden_stride_,
                    weights_.norm, config_.hidden_size, config_.rms_norm_eps,
                    hidden_out_.data() + std::ptrdiff_t{i} * hidden_stride_);
    });
}

void Decoder::logits(int begin, int end, float *out) {
    const Pool::Step step(pool_, head_->ns(k_, end - begin));
    head_->logits(k_, pool_, hidden_out_.data() + std::ptrdiff_t{begin} * hidden_stride_,
                  hidden_stride_, end - begin, out);
}

void Decoder::sample(std::span<Sampler *const> samplers, std::int32_t *out) {
    const int rows = static_cast<int>(samplers.size());
    const Pool::Step step(pool_, head_->ns(k_, rows));
    for (int begin = 0; begin < rows; begin += kSampleRows) {
        const int count = std::min(kSampleRows, rows - begin);
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
        for (std::size_t i = 0; i <= draft.tokens.size(); ++i) {
            samplers.push_back(draft.tokens.empty() ? draft.sampler
                                                    : &ahead.emplace_back(draft.sampler->after(
                                                          draft.tokens.first(i))));
            samplers.back()->allow(draft.allowed.empty() ? Allowed() : draft.allowed[i]);
        }
    }
    std::vector<std::int32_t> chosen(samplers.size());
    sample(samplers, chosen.data());
    for (const Draft &draft : drafts) draft.sampler->allow(Allowed()); // the rest is borrowed
    out->clear();
    auto row = chosen.cbegin();
    for (const Draft &draft : drafts) {
        const auto [wrong, _] = std::mismatch(draft.tokens.begin(), draft.tokens.end(), row);
        const auto end = row + (wrong - draft.tokens.begin()) + 1;
        out->emplace_back(row, end);
        if (!draft.tokens.empty())
            for (const std::int32_t id : out->back())
                if (id >= 0) draft.sampler->accept(id);
        row += static_cast<std::ptrdiff_t>(draft.tokens.size()) + 1;
    }
}

} // namespace trilobit
