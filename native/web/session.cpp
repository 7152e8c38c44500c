// A model in a browser: what its page calls. The page reads the packed file into this memory and
// says where the tensors lie; ids go in, chosen ids come out. Only models of BitNet's own shape,
// with a scale for each matrix: the page refuses others.
//
// An instance has one thread, so nothing here is shared.

#include "../decoder.h"
#include "../isa.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#define TRILOBIT_EXPORT(name) extern "C" __attribute__((export_name(#name)))

namespace trilobit {
namespace {

constexpr int kBatchTokens = 128;

// As docs/web/engine.js writes it, in words of four bytes.
struct Description {
    std::int32_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
        num_key_value_heads, head_dim, positions;
    float rms_norm_eps;
    std::int32_t base3, lines; // the layout; up_proj in rows, down_proj in columns
    std::int32_t embedding;    // a Float
    const float *inv_freq, *norm;
    const void *embed_tokens, *lm_head;
    struct {
        const std::uint8_t *codes;
        const float *scales, *residuals;
    } coarse, fine; // of the screen; may have no codes
};
static_assert(sizeof(void *) == 4 && sizeof(Description) == 22 * 4);

// Of a layer, behind the description.
struct LayerTensors {
    struct Matrix {
        const std::uint8_t *packed;
        const float *scale;
    };
    const float *attn_norm, *mlp_norm, *attn_sub_norm, *ffn_sub_norm;
    Matrix q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj;
};

Config config_of(const Description &d) {
    return {d.vocab_size,          d.hidden_size,         d.intermediate_size, d.num_hidden_layers,
            d.num_attention_heads, d.num_key_value_heads, d.head_dim,          d.rms_norm_eps};
}

Weights weights_of(const Description &d, const LayerTensors *tensors) {
    const int h = d.hidden_size, f = d.intermediate_size;
    const int q = d.num_attention_heads * d.head_dim, kv = d.num_key_value_heads * d.head_dim;
    const auto matrix = [&](const LayerTensors::Matrix &m, int rows, int columns,
                            Order alone = Order::groups) {
        return Projection{{m.packed, m.scale, 0, rows, columns,
                           d.base3 ? Layout::base3 : Layout::two_bit, Dense{},
                           d.lines ? alone : Order::groups},
                          nullptr};
    };
    Weights w{};
    const auto type = static_cast<Float>(d.embedding);
    w.embed_tokens.all = {d.embed_tokens, type, d.vocab_size, h};
    w.lm_head.all = {d.lm_head, type, d.vocab_size, h};
    if (d.coarse.codes) {
        const int columns = round_up(h, kScreenPad);
        const auto plane = [&](const auto &p, Order order) {
            return Plane{
                {p.codes, p.scales, 1, d.vocab_size, columns, Layout::two_bit, Dense{}, order},
                p.residuals};
        };
        w.screen = {plane(d.coarse, Order::groups), plane(d.fine, Order::rows),
                    std::min(columns & -columns, 512)};
    }
    w.norm = d.norm;
    w.inv_freq = d.inv_freq;
    for (int n = 0; n < d.num_hidden_layers; ++n) {
        const LayerTensors &t = tensors[n];
        Layer l{};
        l.attn_norm = t.attn_norm;
        l.mlp_norm = t.mlp_norm;
        l.attn_sub_norm = t.attn_sub_norm;
        l.ffn_sub_norm = t.ffn_sub_norm;
        l.q_proj = matrix(t.q_proj, q, h);
        l.k_proj = matrix(t.k_proj, kv, h);
        l.v_proj = matrix(t.v_proj, kv, h);
        l.o_proj = matrix(t.o_proj, h, q);
        l.gate_proj = matrix(t.gate_proj, f, h);
        l.up_proj = matrix(t.up_proj, f, h, Order::rows);
        l.down_proj = matrix(t.down_proj, h, f, Order::columns);
        w.layers.push_back(l);
    }
    return w;
}

class Session {
  public:
    explicit Session(const Description &d)
        : positions_(d.positions), blocks_(static_cast<std::size_t>(blocks_of(d))),
          decoder_(config_of(d), weights_of(d, reinterpret_cast<const LayerTensors *>(&d + 1)),
                   {1, kBatchTokens, blocks_of(d), KvType::f16}, *available_kernels().back()) {
        std::iota(blocks_.begin(), blocks_.end(), 0);
    }

    void begin(SamplerSettings settings) {
        sampler_.emplace(std::move(settings));
        position_ = 0;
    }

    // What comes after these and all before, or -1 where there is no room, or nothing to choose.
    std::int32_t next(std::span<const std::int32_t> ids) {
        if (!sampler_ || ids.empty() || !fits(ids)) return -1;
        while (!ids.empty()) {
            const std::size_t count = std::min(ids.size(), std::size_t{kBatchTokens});
            forward(ids.first(count), count == ids.size());
            ids = ids.subspan(count);
        }
        Sampler *sampler = &*sampler_;
        std::int32_t chosen = -1;
        decoder_.sample({&sampler, 1}, &chosen);
        return chosen;
    }

  private:
    static int blocks_of(const Description &d) { return (d.positions + kKvBlock - 1) / kKvBlock; }

    bool fits(std::span<const std::int32_t> ids) const {
        const int vocab = decoder_.config().vocab_size;
        return ids.size() <= static_cast<std::size_t>(positions_ - position_) &&
               std::all_of(ids.begin(), ids.end(),
                           [&](std::int32_t id) { return id >= 0 && id < vocab; });
    }

    void forward(std::span<const std::int32_t> ids, bool last) {
        std::vector<std::int32_t> positions(ids.size()), sequence(ids.size());
        std::iota(positions.begin(), positions.end(), position_);
        const std::int32_t row = static_cast<std::int32_t>(ids.size()) - 1;
        decoder_.forward({ids, positions, sequence, blocks_.data(),
                          static_cast<int>(blocks_.size()),
                          std::span(&row, last ? std::size_t{1} : std::size_t{0})});
        position_ += static_cast<int>(ids.size());
    }

    int positions_, position_ = 0;
    std::vector<std::int32_t> blocks_;
    Decoder decoder_;
    std::optional<Sampler> sampler_;
};

} // namespace

TRILOBIT_EXPORT(isa) const char *isa() { return available_kernels().back()->name; }

// Memory of the page, at a multiple of what the file's tensors lie at.
TRILOBIT_EXPORT(allocate) void *allocate(std::size_t bytes) {
    constexpr std::size_t kAlign = 64;
    return std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
}

TRILOBIT_EXPORT(open) Session *open_session(const Description *d) { return new Session(*d); }

TRILOBIT_EXPORT(begin)
void begin(Session *session, float temperature, std::uint32_t seed_low, std::uint32_t seed_high) {
    SamplerSettings settings;
    settings.temperature = temperature;
    settings.seed = std::uint64_t{seed_high} << 32 | seed_low;
    session->begin(std::move(settings));
}

TRILOBIT_EXPORT(next)
std::int32_t next(Session *session, const std::int32_t *ids, std::int32_t count) {
    return session->next({ids, static_cast<std::size_t>(count)});
}

} // namespace trilobit
