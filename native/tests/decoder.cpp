// The whole decoder on a tiny random model whose sizes fit no vector, tile or block: the same
// logits, bit for bit, for every number of threads and every way to cut and mix the work.

#include "check.h"
#include "tests.h"

#include "../decoder.h"
#include "file.h"

#include <algorithm>
#include <memory>
#include <numeric>

namespace trilobit::test {
namespace {

constexpr Config kConfig{
    .vocab_size = 131,
    .hidden_size = 60,
    .intermediate_size = 140,
    .num_hidden_layers = 2,
    .num_attention_heads = 6,
    .num_key_value_heads = 2,
    .head_dim = 10,
    .rms_norm_eps = 1e-5f,
};
// What a family of models has.
struct Family {
    const char *name;
    Config config;
    bool sub_norms, qk_norms, post_norms, projection_norms;
    int scale_step; // 1: scales by row, 128: by block, and the tables are ternary too
    bool slides;
};

Config with(void (*change)(Config &)) {
    Config c = kConfig;
    change(c);
    return c;
}

const Family kBitNet{"bitnet", kConfig, true, false, false, false, 0, false};
const Family kLlama{"llama", with([](Config &c) { c.hidden_act = Activation::silu; }),
                    false,   false,
                    false,   false,
                    1,       false};
const Family kBonsai{"bonsai",
                     with([](Config &c) {
                         c.hidden_act = Activation::silu;
                         c.attention_factor = 1.25f;
                     }),
                     false,
                     true,
                     false,
                     false,
                     128,
                     false};
const Family kGemma{"gemma",
                    with([](Config &c) {
                        c.hidden_act = Activation::gelu_tanh;
                        c.projection_norm_eps = 1e-6f;
                        c.embedding_scale = 3;
                        c.query_pre_attn_scalar = 25;
                        c.sliding_window = 75;
                    }),
                    false,
                    true,
                    true,
                    true,
                    0,
                    true};

const Family kEmbedding{"embedding",
                        with([](Config &c) {
                            c.hidden_act = Activation::silu;
                            c.projection_norm_eps = 1e-6f;
                        }),
                        false,
                        true,
                        false,
                        true,
                        0,
                        false};

constexpr int kLong = kSpan + 20; // a sequence of two spans
constexpr int kShort = 45;
constexpr int kBlocks = 32; // for both sequences

// A bit of a hash of the column's number, as in model/screen.py.
float sign_of(std::uint32_t column) {
    std::uint32_t h = column + 1;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return (h ^ h >> 16) & 1 ? -1.0f : 1.0f;
}

// Random weights, in buffers as large as in a file.
class Model {
  public:
    // skips: up_proj lies in rows and down_proj in columns, so that zeros can be skipped.
    explicit Model(const Family &family, bool skips = false)
        : family_(family), skips_(skips), random_(11) {
        const Config &c = kConfig;
        const int q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
        const int h = c.hidden_size, f = c.intermediate_size;
        embedding_ = random_.floats(size(c.vocab_size, h), -1, 1);
        weights_.embed_tokens.all = {embedding_.data(), Float::f32, c.vocab_size, h};
        weights_.lm_head = weights_.embed_tokens;
        if (family.scale_step == 128) {
            weights_.ternary_embed_tokens = ternary(c.vocab_size, h);
            weights_.ternary_lm_head = ternary(c.vocab_size, h);
        }
        weights_.norm = gain(h);
        weights_.inv_freq = gain(c.head_dim / 2);
        if (family.slides) weights_.local_inv_freq = gain(c.head_dim / 2);
        for (int n = 0; n < c.num_hidden_layers; ++n) {
            Layer l{};
            l.attn_norm = gain(h);
            l.mlp_norm = gain(h);
            l.attn_sub_norm = family.sub_norms ? gain(q) : nullptr;
            l.ffn_sub_norm = family.sub_norms ? gain(f) : nullptr;
            l.attn_post_norm = family.post_norms ? gain(h) : nullptr;
            l.mlp_post_norm = family.post_norms ? gain(h) : nullptr;
            l.q_norm = family.qk_norms ? gain(c.head_dim) : nullptr;
            l.k_norm = family.qk_norms ? gain(c.head_dim) : nullptr;
            l.q_proj = projection(q, h);
            l.k_proj = projection(kv, h);
            l.v_proj = projection(kv, h);
            l.o_proj = projection(h, q);
            l.gate_proj = projection(f, h);
            l.up_proj = projection(f, h, skips_ ? Order::rows : Order::groups);
            l.down_proj = projection(h, f, skips_ ? Order::columns : Order::groups);
            l.sliding = family.slides && n == 0;
            weights_.layers.push_back(l);
        }
    }

    const Config &config() const { return family_.config; }
    const Weights &weights() const { return weights_; }

    // The same model with a screen of its head.
    Weights screened() {
        constexpr int kColumnCount = 64; // of one block, rotated as one
        const int rows = kConfig.vocab_size, h = kConfig.hidden_size;
        std::vector<double> rest(size(rows, kColumnCount)); // rotated rows, less what is rounded
        for (int r = 0; r < rows; ++r)
            for (int i = 0; i < kColumnCount; ++i)
                for (int j = 0; j < h; ++j) {
                    const double x = double{sign_of(size(j)) * embedding_[size(r, h) + size(j)]};
                    rest[size(r, kColumnCount) + size(i)] +=
                        std::popcount(static_cast<unsigned>(i & j)) % 2 ? -x / 8 : x / 8;
                }
        const auto plane = [&](Order order) {
            Ternary w{nullptr, nullptr, 1, rows, kColumnCount, Layout::two_bit, {}, order};
            std::vector<std::uint8_t> &packed = packed_.emplace_back(w.bytes());
            std::vector<float> scales(size(rows)), residuals(size(rows));
            for (int r = 0; r < rows; ++r) {
                double *row = rest.data() + size(r, kColumnCount), squares = 0;
                for (int i = 0; i < kColumnCount; ++i) squares += row[i] * row[i];
                const double scale = 1.1 * std::sqrt(squares / kColumnCount);
                squares = 0;
                for (int i = 0; i < kColumnCount; ++i) {
                    const int code =
                        std::clamp(static_cast<int>(std::floor(row[i] / scale)) + 2, 0, 3);
                    row[i] -= (code - 1.5) * scale;
                    squares += row[i] * row[i];
                    const int block = i / w.block_columns();
                    const std::ptrdiff_t at =
                        order == Order::rows
                            ? std::ptrdiff_t{r} * w.line_bytes() + block * 4
                            : std::ptrdiff_t{r / kRows * w.blocks() + block} * kBlockBytes +
                                  r % kRows * 4;
                    packed[static_cast<std::size_t>(at + i % 4)] |=
                        static_cast<std::uint8_t>(code << 2 * (i % w.block_columns() / 4));
                }
                scales[size(r)] = static_cast<float>(scale);
                residuals[size(r)] = static_cast<float>(std::sqrt(squares));
            }
            w.packed = packed.data();
            w.scales = gains_.emplace_back(std::move(scales)).data();
            return Plane{w, gains_.emplace_back(std::move(residuals)).data()};
        };
        Weights w = weights_;
        w.screen.coarse = plane(Order::groups);
        w.screen.fine = plane(Order::rows);
        w.screen.block = kColumnCount;
        return w;
    }

  private:
    const float *gain(int n) {
        gains_.push_back(random_.floats(size(n), 0.5f, 1.5f));
        return gains_.back().data();
    }

    Ternary ternary(int rows, int columns, Order order = Order::groups) {
        std::vector<std::int8_t> codes(size(rows, columns));
        for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random_.between(-1, 1));
        packed_.push_back(pack(codes, rows, columns, Layout::two_bit, order));
        Ternary w{packed_.back().data(), nullptr, 0, rows, columns, Layout::two_bit, {}, order};
        const bool blocks = family_.scale_step == 128;
        const int scales = blocks ? rows * w.scale_groups() : family_.scale_step ? rows : 1;
        gains_.push_back(random_.floats(size(scales), 0.05f, 0.2f));
        if (blocks) {
            w.group_scales = {gains_.back().data(), Float::f32, rows, w.scale_groups()};
        } else {
            w.scales = gains_.back().data();
            w.scale_step = family_.scale_step;
        }
        return w;
    }

    Projection projection(int rows, int columns, Order order = Order::groups) {
        return {ternary(rows, columns, order), family_.projection_norms ? gain(columns) : nullptr};
    }

    const Family &family_;
    const bool skips_;
    Random random_;
    std::vector<float> embedding_;
    std::vector<std::vector<float>> gains_;
    std::vector<std::vector<std::uint8_t>> packed_;
    Weights weights_{};
};

// Runs two sequences on one decoder and keeps the logits of every token.
class Run {
  public:
    Run(const Kernels &kernels, const Config &config, const Weights &weights, int threads,
        KvType kv_type)
        : decoder_(config, weights, {threads, kLong + kShort, kBlocks, kv_type}, kernels),
          table_(2 * kBlocks) {
        Random random(7); // the blocks of both sequences are mixed
        std::vector<std::int32_t> blocks(kBlocks);
        std::iota(blocks.begin(), blocks.end(), 0);
        for (int i = kBlocks - 1; i > 0; --i)
            std::swap(blocks[size(i)], blocks[size(random.between(0, i))]);
        const int first = (kLong + kKvBlock - 1) / kKvBlock;
        std::copy(blocks.begin(), blocks.begin() + first, table_.begin());
        std::copy(blocks.begin() + first, blocks.end(), table_.begin() + kBlocks);
        for (const int length : {kLong, kShort}) {
            logits_.emplace_back(size(length, kConfig.vocab_size));
            ids_.emplace_back();
            for (int i = 0; i < length; ++i)
                ids_.back().push_back(random.between(0, kConfig.vocab_size - 1));
        }
    }

    // One forward over the next tokens of the long and of the short sequence.
    void step(int of_long, int of_short) {
        std::vector<std::int32_t> ids, positions, sequence, rows;
        const int counts[] = {of_long, of_short};
        for (const int s : {0, 1})
            for (int i = 0; i < counts[s]; ++i) {
                rows.push_back(static_cast<std::int32_t>(ids.size()));
                ids.push_back(ids_[size(s)][size(done_[s] + i)]);
                positions.push_back(done_[s] + i);
                sequence.push_back(s);
            }
        decoder_.forward({ids, positions, sequence, table_.data(), kBlocks, rows});
        for (int s = 0, row = 0; s < 2; row += counts[s++]) {
            decoder_.logits(row, row + counts[s],
                            logits_[size(s)].data() + size(done_[s], kConfig.vocab_size));
            done_[s] += counts[s];
        }
    }

    // Both sequences to their ends, `chunk` tokens of each at a time.
    void finish(int chunk) {
        while (done_[0] < kLong || done_[1] < kShort)
            step(std::min(chunk, kLong - done_[0]), std::min(chunk, kShort - done_[1]));
    }

    const std::vector<float> &logits(int sequence) const { return logits_[size(sequence)]; }
    Decoder &decoder() { return decoder_; }

  private:
    Decoder decoder_;
    std::vector<std::int32_t> table_;
    std::vector<std::vector<std::int32_t>> ids_;
    std::vector<std::vector<float>> logits_;
    int done_[2] = {0, 0};
};

// FNV-1a of all bits of all logits.
std::uint64_t digest(const Run &run) {
    std::uint64_t hash = 0xcbf29ce484222325;
    for (const int s : {0, 1})
        for (const float x : run.logits(s))
            hash = (hash ^ std::bit_cast<std::uint32_t>(x)) * 0x100000001b3;
    return hash;
}

void same_logits(const Run &got, const Run &wanted, Check &check) {
    for (const int s : {0, 1})
        check.same(got.logits(s).data(), wanted.logits(s).data(), wanted.logits(s).size());
}

void sampling(const Kernels &k, Model &model, Check &check) {
    constexpr int kRowCount = 12;
    const int vocab = kConfig.vocab_size;
    Run full(k, kConfig, model.weights(), 3, KvType::f16);
    Weights weights = model.screened();
    Run screened(k, kConfig, weights, 3, KvType::f16);
    const File file(model.weights().embed_tokens.all.data,
                    size(vocab, kConfig.hidden_size) * sizeof(float), 0);
    weights.embed_tokens.file = weights.lm_head.file = file.descriptor();
    Run from_file(k, kConfig, weights, 3, KvType::f16);
    full.step(kRowCount, 0);
    screened.step(kRowCount, 0);
    from_file.step(kRowCount, 0);
    std::vector<float> logits(size(kRowCount, vocab));
    full.decoder().logits(0, kRowCount, logits.data());

    const auto sample = [&](Run &run, const SamplerSettings &settings) {
        std::vector<Sampler> samplers(kRowCount, Sampler(settings));
        std::vector<Sampler *> pointers;
        for (Sampler &s : samplers) pointers.push_back(&s);
        std::vector<std::int32_t> ids(kRowCount);
        run.decoder().sample(pointers, ids.data());
        return ids;
    };
    check.begin(std::string(k.name) + " sampling");
    SamplerSettings greedy;
    greedy.temperature = 0;
    const std::vector<std::int32_t> largest = sample(full, greedy);
    for (int row = 0; row < kRowCount; ++row) {
        const float *begin = logits.data() + row * vocab;
        check.that(largest[size(row)] == std::max_element(begin, begin + vocab) - begin,
                   "temperature 0 takes the largest logit");
    }
    check.that(sample(screened, greedy) == largest, "a screened head takes it too");
    check.same(from_file.logits(0).data(), full.logits(0).data(), size(kRowCount, vocab));
    const std::uint64_t passes = from_file.decoder().head().full_passes();
    check.that(passes > 0, "full passes are counted");
    check.that(sample(from_file, greedy) == largest, "so does one whose rows are in a file");
    check.that(from_file.decoder().head().full_passes() == passes, "without all of its rows");
    check.that(screened.decoder().head().screened_tokens() > 0, "the screen decides");
    for (const std::uint64_t seed : {0, 1, 2}) {
        SamplerSettings free;
        free.seed = seed;
        check.that(sample(full, free) == sample(screened, free), "screened draws are the same");
        free.top_k = 5;
        check.that(sample(full, free) == sample(screened, free), "so they are of the best five");
        free.top_k = 0;
        free.min_p = 0.1f;
        free.logit_bias = {{3, 2.0f}};
        check.that(sample(full, free) == sample(screened, free), "and with min-p and a bias");
        check.that(sample(full, free) == sample(from_file, free), "and with rows in a file");
    }
    Random random(23);
    for (const int share : {40, 3, 1}) { // one token of so many is allowed
        std::vector<std::uint32_t> bits(size((vocab + 31) / 32));
        for (int id = 0; id < vocab; ++id)
            if (random.between(1, share) == 1) bits[size(id / 32)] |= std::uint32_t{1} << id % 32;
        const std::vector<Allowed> allowed(1, Allowed(std::span<const std::uint32_t>(bits)));
        const auto choose = [&](Run &run, const SamplerSettings &settings) {
            std::vector<Sampler> samplers(kRowCount, Sampler(settings));
            std::vector<Draft> drafts;
            for (Sampler &s : samplers) drafts.push_back({&s, {}, allowed});
            std::vector<std::vector<std::int32_t>> out;
            run.decoder().verify(drafts, &out);
            return out;
        };
        SamplerSettings hot;
        hot.top_k = 7;
        for (const SamplerSettings &settings : {greedy, hot}) {
            const auto chosen = choose(full, settings);
            for (const auto &row : chosen)
                check.that(allowed[0].has(row[0]), "a choice is allowed");
            check.that(choose(screened, settings) == chosen, "screened choices are the same");
            check.that(choose(from_file, settings) == chosen, "and with rows in a file");
        }
    }
    check.that(!from_file.decoder().take_failure(), "all rows could be read");
}

// Drafts are judged as the tokens would be chosen one at a time, by a sampler that has seen all
// before; penalties make every choice depend on the ones before it.
void drafts(const Kernels &k, Model &model, Check &check) {
    constexpr int kRowCount = 8;
    for (const bool screened : {false, true}) {
        Run run(k, kConfig, screened ? model.screened() : model.weights(), 3, KvType::f16);
        run.step(kRowCount, 0);
        std::vector<float> logits(size(kRowCount, kConfig.vocab_size));
        run.decoder().logits(0, kRowCount, logits.data());
        for (const float temperature : {0.0f, 1.0f})
            for (const int wrong : {0, 3, 6}) {
                check.begin(std::string(k.name) + " draft of 6, right up to " +
                            std::to_string(wrong));
                SamplerSettings settings;
                settings.temperature = temperature;
                settings.repetition_penalty = 1.3f;
                settings.frequency_penalty = 0.2f;
                const std::vector<std::int32_t> prompt{1, 2, 3};
                Sampler single(settings), sampler(settings), other(settings);
                single.observe(prompt);
                sampler.observe(prompt);
                std::vector<std::int32_t> wanted;
                for (int row = 0; row <= wrong; ++row) {
                    const float *begin = logits.data() + row * kConfig.vocab_size;
                    std::vector<float> copy(begin, begin + kConfig.vocab_size);
                    wanted.push_back(single.sample(k, copy.data(), kConfig.vocab_size));
                }
                std::vector<std::int32_t> guess(wanted.begin(), wanted.end());
                guess.resize(6, 0);
                if (wrong < 6) guess[size(wrong)] = wanted.back() == 5 ? 6 : 5;
                const Draft both[] = {{&sampler, guess}, {&other, {}}};
                std::vector<std::vector<std::int32_t>> out;
                run.decoder().verify(both, &out);
                check.that(out.size() == 2 && out[0] == wanted, "a draft's first tokens");
                check.that(out[1].size() == 1, "one token without a draft");
                check.that(sampler.noise_key() == single.noise_key() &&
                               sampler.adjusted_logit(wanted[0], 1) ==
                                   single.adjusted_logit(wanted[0], 1),
                           "the sampler has seen what was chosen");
            }
    }
}

constexpr const char *kKvNames[] = {" f32", " f16", " i8"};

// However the work is cut, mixed and shared: the same logits, to the bit.
void exactness(const Kernels &k, const Family &family, KvType kv_type, std::uint64_t wanted,
               Check &check, bool skips = false) {
    const Model model(family, skips);
    const auto run = [&](int threads) {
        return std::make_unique<Run>(k, model.config(), model.weights(), threads, kv_type);
    };
    const std::string name = std::string(k.name) + ' ' + family.name +
                             kKvNames[static_cast<int>(kv_type)] + (skips ? " skipping" : "");
    check.begin(name + " decoder");
    const auto whole = run(1);
    whole->finish(kLong);
    const std::vector<float> &logits = whole->logits(0);
    check.that(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }),
               "logits are finite");
    check.that(!std::equal(logits.begin(), logits.end() - kConfig.vocab_size,
                           logits.begin() + kConfig.vocab_size),
               "logits differ from token to token");

    check.that(digest(*whole) == wanted, "the same logits as on every other machine");

    check.begin(name + " decoder, chunks of 97, 5 threads");
    const auto chunked = run(5);
    chunked->finish(97);
    same_logits(*chunked, *whole, check);

    // A prompt, another beside it, then token by token over the border of the span.
    check.begin(name + " decoder, mixed batches, 2 threads");
    const auto mixed = run(2);
    mixed->step(kSpan - 7, 0);
    for (int i = 0; i < 14; ++i) mixed->step(1, i % 3);
    mixed->finish(7);
    same_logits(*mixed, *whole, check);
}

#if !defined(__wasi__)
// Small steps stay on one thread; the same with many tokens, or larger ones, do not.
void shares_what_is_worth_it(const Kernels &slow, Check &check) {
    Kernels fast = slow;
    fast.products_per_ns = 1;
    const Model model(kBitNet);
    Run run(fast, model.config(), model.weights(), 3, KvType::f16);
    check.begin(std::string(slow.name) + " threads of a step");
    const double ns = 2.0 * (60 * (60 + 2 * 20 + 60) + 3 * 60 * 140); // of a token
    const int few = static_cast<int>(Pool::kStepNs / ns);
    check.that(run.decoder().threads_for(1) == 1 && run.decoder().threads_for(few) == 1,
               "a short step takes one thread");
    check.that(run.decoder().threads_for(few + 1) == 3, "a long one takes all");
    Run long_run(slow, model.config(), model.weights(), 3, KvType::f16);
    check.that(long_run.decoder().threads_for(1) == 3, "where products are slow, all are long");
}
#endif

} // namespace

// What comes out is the same on every instruction set, processor, compiler and C library.
void test_decoder(const Kernels &kernels, Check &check) {
    Kernels k = kernels;
    k.products_per_ns = 1e-6; // so slow that everything is worth sharing
#if !defined(__wasi__)
    shares_what_is_worth_it(k, check);
#endif
    exactness(k, kBitNet, KvType::f32, 0x44e09560a6a9337d, check);
    exactness(k, kBitNet, KvType::i8, 0x6e579a400a363d70, check);
    exactness(k, kBitNet, KvType::f16, 0x440ce118bbd99f29, check);
    for (const double mostly : {0.0, k.mostly[0], 2.0}) { // of several tokens: all, some, their own
        Kernels skipping = k;
        skipping.mostly[0] = mostly;
        exactness(skipping, kBitNet, KvType::f16, 0x440ce118bbd99f29, check, true);
    }
    exactness(k, kLlama, KvType::f16, 0xc8dc47a2520f95b1, check);
    exactness(k, kBonsai, KvType::f16, 0x3a380062121d721b, check);
    exactness(k, kGemma, KvType::f16, 0xe70953c5a99975a8, check);
    exactness(k, kEmbedding, KvType::f16, 0x27abc559c61646b5, check);
    Model model(kBitNet);
    sampling(k, model, check);
    drafts(k, model, check);
}

} // namespace trilobit::test
