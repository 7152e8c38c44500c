// The whole decoder on a tiny random model whose sizes fit no vector, tile or block: the same
// logits, bit for bit, for every number of threads and every way to cut and mix the work.

#include "check.h"
#include "tests.h"

#include "../decoder.h"

#include <algorithm>
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
constexpr int kLong = kSpan + 20; // a sequence of two spans
constexpr int kShort = 45;
constexpr int kBlocks = 32; // for both sequences

// A bit of a hash of the column's number, as in screen.py.
float sign_of(std::uint32_t column) {
    std::uint32_t h = column + 1;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return (h ^ h >> 16) & 1 ? -1.0f : 1.0f;
}

// Random weights, in buffers as large as in a file.
class Model {
  public:
    explicit Model(std::uint64_t seed) : random_(seed) {
        const Config &c = kConfig;
        const int q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
        const int h = c.hidden_size, f = c.intermediate_size;
        embedding_ = random_.floats(size(c.vocab_size, h), -1, 1);
        weights_.embed_tokens = {embedding_.data(), Float::f32, c.vocab_size, h};
        weights_.lm_head = weights_.embed_tokens;
        weights_.norm = gain(h);
        weights_.inv_freq = gain(c.head_dim / 2);
        for (int n = 0; n < c.num_hidden_layers; ++n)
            weights_.layers.push_back({gain(h), gain(h), gain(q), gain(f), ternary(q, h),
                                       ternary(kv, h), ternary(kv, h), ternary(h, q), ternary(f, h),
                                       ternary(f, h), ternary(h, f)});
    }

    const Weights &weights() const { return weights_; }

    // The same model with a screen of its head.
    Weights screened() {
        constexpr int kColumnCount = 64; // of one block, rotated as one
        const int rows = kConfig.vocab_size, h = kConfig.hidden_size;
        screen_codes_.assign(size(round_up(rows, kRows), kColumnCount) / 2, 0x88);
        for (int r = 0; r < rows; ++r) {
            double row[kColumnCount] = {}, largest = 0, squares = 0;
            for (int i = 0; i < kColumnCount; ++i) {
                for (int j = 0; j < h; ++j) {
                    const double x = double{sign_of(size(j)) * embedding_[size(r, h) + size(j)]};
                    row[i] += std::popcount(static_cast<unsigned>(i & j)) % 2 ? -x / 8 : x / 8;
                }
                largest = std::max(largest, std::abs(row[i]));
            }
            const double scale = largest / 7;
            for (int i = 0; i < kColumnCount; ++i) {
                const int code = static_cast<int>(std::lround(row[i] / scale));
                squares += (row[i] - code * scale) * (row[i] - code * scale);
                std::uint8_t &byte = screen_codes_[size(r / kRows, kBlockBytes) +
                                                   size(r % kRows, 32) + size(i % 32)];
                byte = static_cast<std::uint8_t>(i < 32 ? (byte & 0xf0) | (code + 8)
                                                        : (byte & 0x0f) | (code + 8) << 4);
            }
            screen_scales_.push_back(static_cast<float>(scale));
            screen_residuals_.push_back(static_cast<float>(std::sqrt(squares)));
        }
        Weights w = weights_;
        w.screen = {screen_codes_.data(), screen_scales_.data(), screen_residuals_.data(), rows,
                    kColumnCount,         kColumnCount};
        return w;
    }

  private:
    const float *gain(int n) {
        gains_.push_back(random_.floats(size(n), 0.5f, 1.5f));
        return gains_.back().data();
    }

    Ternary ternary(int rows, int columns) {
        std::vector<std::int8_t> codes(size(rows, columns));
        for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random_.between(-1, 1));
        packed_.push_back(pack(codes, rows, columns));
        return {packed_.back().data(), random_.uniform(0.05f, 0.2f), rows, columns};
    }

    Random random_;
    std::vector<float> embedding_;
    std::vector<std::vector<float>> gains_;
    std::vector<std::vector<std::uint8_t>> packed_;
    std::vector<std::uint8_t> screen_codes_;
    std::vector<float> screen_scales_, screen_residuals_;
    Weights weights_{};
};

// Runs two sequences on one decoder and keeps the logits of every token.
class Run {
  public:
    Run(const Kernels &kernels, const Weights &weights, int threads, Float kv_type)
        : decoder_(kConfig, weights, {threads, kLong + kShort, kBlocks, kv_type}, kernels),
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

void same_logits(const Run &got, const Run &wanted, Check &check) {
    for (const int s : {0, 1})
        check.same(got.logits(s).data(), wanted.logits(s).data(), wanted.logits(s).size());
}

void sampling(const Kernels &k, Model &model, Check &check) {
    constexpr int kRowCount = 12;
    const int vocab = kConfig.vocab_size;
    Run full(k, model.weights(), 3, Float::f16), screened(k, model.screened(), 3, Float::f16);
    full.step(kRowCount, 0);
    screened.step(kRowCount, 0);
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
    }
}

// Drafts are judged as the tokens would be chosen one at a time, by a sampler that has seen all
// before; penalties make every choice depend on the ones before it.
void drafts(const Kernels &k, Model &model, Check &check) {
    constexpr int kRowCount = 8;
    for (const bool screened : {false, true}) {
        Run run(k, screened ? model.screened() : model.weights(), 3, Float::f16);
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

} // namespace

void test_decoder(const Kernels &k, Check &check) {
    Model model(11);
    for (const Float kv_type : {Float::f16, Float::f32}) {
        const std::string name = std::string(k.name) + (kv_type == Float::f16 ? " f16" : " f32");
        check.begin(name + " decoder");
        Run whole(k, model.weights(), 1, kv_type);
        whole.finish(kLong);
        const std::vector<float> &logits = whole.logits(0);
        check.that(
            std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }),
            "logits are finite");
        check.that(!std::equal(logits.begin(), logits.end() - kConfig.vocab_size,
                               logits.begin() + kConfig.vocab_size),
                   "logits differ from token to token");

        check.begin(name + " decoder, chunks of 97, 5 threads");
        Run chunked(k, model.weights(), 5, kv_type);
        chunked.finish(97);
        same_logits(chunked, whole, check);

        // A prompt, another beside it, then token by token over the border of the span.
        check.begin(name + " decoder, mixed batches, 2 threads");
        Run mixed(k, model.weights(), 2, kv_type);
        mixed.step(kSpan - 7, 0);
        for (int i = 0; i < 14; ++i) mixed.step(1, i % 3);
        mixed.finish(7);
        same_logits(mixed, whole, check);
    }
    sampling(k, model, check);
    drafts(k, model, check);
}

} // namespace trilobit::test
