#include "head.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trilobit {
namespace {

// Deviations between an approximate and the exact logit that are allowed for. The errors of a
// rotated row are close to Gaussian; of 10^12 of them, none is expected beyond 7.1.
constexpr float kDeviations = 8;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kLargestCode = 7;   // of the screen
constexpr int kNoiseTokens = 512; // noise made at a time
constexpr int kScanRows = 512;    // rows looked through at a time
// Of the rows, how many take no longer than the screen of all of them, to 5 KB a row from anywhere.
constexpr int kFewRows = 64, kFewShare = 64;

// A bit of a hash of the column's number, as in model/screen.py.
float sign_of(std::uint32_t column) {
    std::uint32_t h = column + 1;
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    h ^= h >> 16;
    return h & 1 ? -1.0f : 1.0f;
}

// Of equals the first leads, whoever finds it.
bool leads(const float *scores, std::int32_t row, std::int32_t other) {
    return scores[row] > scores[other] || (scores[row] == scores[other] && row < other);
}

} // namespace

Head::Head(const DenseTable &weights, const Ternary &ternary, const Screen &screen, int threads,
           int rows_at_once)
    : rows_(weights, threads), ternary_(ternary), screen_(screen),
      vocab_(ternary.packed ? ternary.rows : weights.all.rows), threads_(threads),
      rows_at_once_(rows_at_once) {
    const std::size_t n = static_cast<std::size_t>(rows_at_once);
    if (ternary.packed) {
        const std::size_t groups = n * static_cast<std::size_t>(ternary.scale_groups());
        codes_ = Array<std::int8_t>(2 * groups * kScaleColumns);
        code_scales_ = Array<float>(groups);
        code_sums_ = Array<std::int32_t>(groups);
        scratch_ = Array<unsigned char>(static_cast<std::size_t>(threads) * kScratchBytes);
    }
    scores_ = Array<float>(n * static_cast<std::size_t>(vocab_));
    if (!screen.codes) return;
    const std::size_t columns = static_cast<std::size_t>(screen.columns);
    signs_ = Array<float>(columns);
    const float scale = 1.0f / std::sqrt(static_cast<float>(screen.block));
    for (std::size_t i = 0; i < columns; ++i)
        signs_[static_cast<std::ptrdiff_t>(i)] = sign_of(static_cast<std::uint32_t>(i)) * scale;
    rotated_ = Array<float>(n * columns);
    codes_ = Array<std::int8_t>(n * columns);
    code_scales_ = Array<float>(n);
    code_sums_ = Array<std::int32_t>(n);
    passes_.resize(n);
    found_.resize(n * static_cast<std::size_t>(threads));
    candidates_.resize(n);
}

// A screen is computed as ternary products are, at half their rate.
double Head::ns(const Kernels &k, int tokens) const {
    const double columns = ternary_.packed ? ternary_.columns : rows_.all().columns;
    const double values = columns * vocab_ * tokens;
    return ternary_.packed || screen_.codes ? k.ns_of_products(2 * values) : k.ns_of_floats(values);
}

void Head::logits(const Kernels &k, Pool &pool, const float *x, int stride, int tokens,
                  float *out) {
    if (ternary_.packed) return ternary_logits(k, pool, x, stride, tokens, out);
    // Rows of the head that stay in an L2 cache while a few tokens at a time pass over them.
    constexpr int kHeadRows = 32, kHeadTokens = 3;
    const Dense &all = rows_.all();
    const int vocab = vocab_, chunks = (vocab + kHeadRows - 1) / kHeadRows;
    if (!rows_.whole(0)) return;
    if (rows_.in_file()) full_passes_.fetch_add(1, std::memory_order_relaxed);
    const double ns = k.ns_of_floats(1.0 * tokens * vocab * all.columns);
    pool.split(chunks, ns, [&](int first, int last, int) {
        const int rows_end = std::min(last * kHeadRows, vocab);
        if (tokens == 1) return k.dense(all, first * kHeadRows, rows_end, x, stride, 1, out, vocab);
        for (int row = first * kHeadRows; row < rows_end; row += kHeadRows)
            for (int t = 0; t < tokens; t += kHeadTokens)
                k.dense(all, row, std::min(row + kHeadRows, rows_end),
                        x + std::ptrdiff_t{t} * stride, stride, std::min(kHeadTokens, tokens - t),
                        out + std::ptrdiff_t{t} * vocab, vocab);
    });
}

void Head::ternary_logits(const Kernels &k, Pool &pool, const float *x, int stride, int tokens,
                          float *out) {
    const int vocab = ternary_.rows;
    for (int first = 0; first < tokens; first += rows_at_once_) {
        const int count = std::min(rows_at_once_, tokens - first);
        const WideActivations codes{{codes_.data(), code_scales_.data(), code_sums_.data(),
                                     2 * count, ternary_.scale_groups() * kScaleColumns,
                                     k.wide_tile_tokens(2 * count)}};
        for (int t = 0; t < count; ++t)
            k.quantise_groups(x + std::ptrdiff_t{first + t} * stride, ternary_.columns, codes, t);
        pool.split(ternary_.groups(), ns(k, count), [&](int begin, int end, int thread) {
            k.linear_groups(ternary_, codes, begin, end, out + std::ptrdiff_t{first} * vocab, vocab,
                            false,
                            scratch_.data() + static_cast<std::size_t>(thread) * kScratchBytes);
        });
    }
}

int Head::most_of_few() const { return std::max(kFewRows, vocab_ / kFewShare); }

void Head::sample(const Kernels &k, Pool &pool, const float *x, int stride,
                  std::span<Sampler *const> samplers, std::int32_t *out) {
    const int tokens = static_cast<int>(samplers.size());
    const auto every = [](const Choice &one) { return one.sampler->needs_every_logit(); };
    few_.clear();
    many_.clear();
    std::vector<std::int32_t> ids;
    for (int t = 0; t < tokens; ++t) {
        Sampler *sampler = samplers[static_cast<std::size_t>(t)];
        const bool few = !ternary_.packed && sampler->allowed().few(vocab_, most_of_few(), &ids);
        (few ? few_ : many_).push_back({x + std::ptrdiff_t{t} * stride, sampler, out + t});
    }
    const bool screened = screen_.codes && std::none_of(many_.begin(), many_.end(), every);
    if (!screened && !many_.empty()) { // which computes the few beside them
        logits(k, pool, x, stride, tokens, scores_.data());
        pool.each(tokens, k.ns_of_floats(1.0 * vocab_ * tokens), [&](int t, int) {
            out[t] = samplers[static_cast<std::size_t>(t)]->sample(
                k, scores_.data() + std::ptrdiff_t{t} * vocab_, vocab_);
        });
        return;
    }
    std::vector<Candidate> candidates;
    for (const Choice &one : few_) {
        one.sampler->allowed().few(vocab_, most_of_few(), &ids);
        candidates.clear();
        for (const std::int32_t id : ids) candidates.push_back({0, id});
        choose(k, pool, one, candidates, scores_.data());
    }
    if (!many_.empty()) sample_screened(k, pool, stride);
}

// The next tokens of many_.
void Head::sample_screened(const Kernels &k, Pool &pool, int stride) {
    const int tokens = static_cast<int>(many_.size());
    const std::ptrdiff_t vocab = vocab_;
    const auto choice = [&](int t) { return many_[static_cast<std::size_t>(t)]; };
    const Activations codes{codes_.data(), code_scales_.data(), code_sums_.data(),
                            tokens,        screen_.columns,     std::min(tokens, kScreenTokens)};
    pool.each(tokens, k.ns_of_floats(8.0 * screen_.columns * tokens),
              [&](int t, int) { prepare(k, codes, t, choice(t).x, *choice(t).sampler); });
    const auto each_range = [&](auto function) {
        const double ns = k.ns_of_floats(2 * vocab * tokens);
        pool.split((vocab_ + kRows - 1) / kRows, ns, [&](int begin, int end, int thread) {
            for (int t = 0; t < tokens; ++t)
                function(t, begin * kRows, std::min(end * kRows, vocab_), thread);
        });
    };
    pool.split((vocab_ + kRows - 1) / kRows, ns(k, tokens), [&](int begin, int end, int) {
        k.screen(screen_, codes, begin, end, scores_.data(), vocab_);
    });
    for (Found &one : found_) one.leader = -1;
    each_range([&](int t, int begin, int end, int thread) {
        race(k, t, choice(t).sampler->allowed(), begin, end, thread);
    });
    pool.each(tokens, k.ns_of_floats(vocab * tokens),
              [&](int t, int thread) { set_bound(k, t, choice(t).x, *choice(t).sampler, thread); });
    each_range([&](int t, int begin, int end, int thread) { scan(k, t, begin, end, thread); });
    for (int t = 0; t < tokens; ++t) {
        float *scores = scores_.data() + t * vocab;
        if (gather(t)) {
            choose(k, pool, choice(t), candidates_[static_cast<std::size_t>(t)], scores);
            continue;
        }
        logits(k, pool, choice(t).x, stride, 1, scores);
        *choice(t).out = choice(t).sampler->sample(k, scores, vocab_);
    }
}

// Choose from candidates, whose logits are computed as the full pass would; over `scores` [vocab].
void Head::choose(const Kernels &k, Pool &pool, const Choice &choice,
                  std::vector<Candidate> &candidates, float *scores) {
    const int count = static_cast<int>(candidates.size());
    const double ns = k.ns_of_floats(1.0 * count * rows_.all().columns);
    pool.split(count, ns, [&](int begin, int end, int thread) {
        for (int i = begin; i < end; ++i) {
            Candidate &one = candidates[static_cast<std::size_t>(i)];
            const float logit = rescored(k, choice.x, one.id, thread, scores);
            one.logit = choice.sampler->adjusted_logit(one.id, logit);
        }
    });
    screened_tokens_.fetch_add(1, std::memory_order_relaxed);
    rescored_rows_.fetch_add(candidates.size(), std::memory_order_relaxed);
    *choice.out = choice.sampler->choose(k, candidates);
}

// Rotate and quantise one hidden state; what its rounding can do to a logit goes into the margins.
void Head::prepare(const Kernels &k, const Activations &out, int t, const float *x,
                   const Sampler &sampler) {
    const int n = screen_.columns;
    float *rotated = rotated_.data() + std::ptrdiff_t{t} * n;
    std::int8_t *codes = out.first(t);
    const std::ptrdiff_t step = 4 * out.tokens_beside(t);
    k.rotate(x, signs_.data(), rows_.all().columns, n, screen_.block, rotated);
    float largest = 1e-30f;
    for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(rotated[i]));
    const float scale = largest / 127;
    std::int32_t sum = 0;
    double norm = 0, error = 0;
    for (int i = 0; i < n; ++i) {
        const float code = std::nearbyint(rotated[i] / scale);
        const double missed = double{rotated[i]} - double{code} * scale;
        codes[i / 4 * step + i % 4] = static_cast<std::int8_t>(code);
        sum += static_cast<std::int32_t>(code);
        norm += double{rotated[i]} * rotated[i];
        error += missed * missed;
    }
    out.scales[t] = scale;
    out.sums[t] = sum;
    Pass &pass = passes_[static_cast<std::size_t>(t)];
    // |Σ residual·x| has the deviation |residual|·|x|/√n; |row| is at most 7·scale·√n.
    pass.reach.residual_weight = kDeviations * static_cast<float>(std::sqrt(norm / n));
    pass.reach.scale_weight = kDeviations * kLargestCode * static_cast<float>(std::sqrt(error));
    pass.noisy = sampler.races();
    pass.noise_key = sampler.noise_key();
    pass.temperature = pass.noisy ? sampler.settings().temperature : 1.0f;
    pass.reach.inverse_temperature = 1.0f / pass.temperature;
    sampler.adjusted(&pass.adjusted, vocab_);
}

// Turn the approximate logits of rows [begin, end) into scores (with noise where the winner of the
// noisy logits is wanted) and find the best. Tokens that bias or penalties change stand aside, and
// forbidden ones are out.
void Head::race(const Kernels &k, int t, const Allowed &allowed, int begin, int end, int thread) {
    Pass &pass = passes_[static_cast<std::size_t>(t)];
    float *scores = scores_.data() + std::ptrdiff_t{t} * vocab_;
    if (pass.noisy) {
        const float inverse = pass.reach.inverse_temperature;
        float noise[kNoiseTokens];
        for (int i = begin; i < end; i += kNoiseTokens) {
            const int count = std::min(kNoiseTokens, end - i);
            k.gumbel(pass.noise_key, i, count, noise);
            for (int j = 0; j < count; ++j) scores[i + j] = scores[i + j] * inverse + noise[j];
        }
    }
    const auto &adjusted = pass.adjusted;
    for (auto id = std::lower_bound(adjusted.begin(), adjusted.end(), begin);
         id != adjusted.end() && *id < end; ++id)
        scores[*id] = kMinusInfinity;
    allowed.forbid_others(scores, begin, end);
    const int best = k.largest(scores + begin, end - begin);
    if (best < 0) return;
    const std::int32_t row = begin + best;
    std::int32_t &leader = found(t, thread).leader;
    if (leader < 0 || leads(scores, row, leader)) leader = row;
}

// The exact logit of one row, which takes the place of its score.
float Head::rescored(const Kernels &k, const float *x, int row, int thread, float *scores) {
    k.dense(rows_.row(row, thread), 0, 1, x, 0, 1, scores + row, 0);
    return scores[row];
}

// The least exact logit of the `count` rows that look largest: so many rows reach it at least.
// Those rows' scores become infinite, so that they stay candidates.
float Head::reached_by(const Kernels &k, const float *x, int count, int thread, float *scores) {
    std::vector<std::int32_t> heap; // the largest so far, the least of them in front
    const auto larger = [&](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; };
    for (std::int32_t row = 0; row < vocab_; ++row) {
        if (static_cast<int>(heap.size()) == count) {
            if (!(scores[row] > scores[heap.front()])) continue;
            std::pop_heap(heap.begin(), heap.end(), larger);
            heap.back() = row;
        } else if (scores[row] > kMinusInfinity) {
            heap.push_back(row);
        } else {
            continue;
        }
        std::push_heap(heap.begin(), heap.end(), larger);
    }
    if (static_cast<int>(heap.size()) < count) return kMinusInfinity;
    float least = std::numeric_limits<float>::infinity();
    for (const std::int32_t row : heap) {
        least = std::min(least, rescored(k, x, row, thread, scores));
        scores[row] = std::numeric_limits<float>::infinity();
    }
    return least;
}

// The score that a row must be able to reach to matter.
void Head::set_bound(const Kernels &k, int t, const float *x, const Sampler &sampler, int thread) {
    Pass &pass = passes_[static_cast<std::size_t>(t)];
    const SamplerSettings &settings = sampler.settings();
    float *scores = scores_.data() + std::ptrdiff_t{t} * vocab_;
    std::int32_t leader = -1;
    for (int i = 0; i < threads_; ++i) {
        const std::int32_t row = found(t, i).leader;
        if (row >= 0 && (leader < 0 || leads(scores, row, leader))) leader = row;
    }
    pass.reach.bound = std::numeric_limits<float>::infinity();
    if (leader < 0) return;
    float noise = 0;
    if (pass.noisy) k.gumbel(pass.noise_key, leader, 1, &noise);
    float bound = kMinusInfinity;
    if (pass.noisy || settings.temperature == 0) {
        // The exact score of the leader, which the winner reaches at least
        bound = rescored(k, x, leader, thread, scores) * pass.reach.inverse_temperature + noise;
    } else {
        // Filters come before the noise: what can pass them, not what can win
        if (settings.top_k > 0) bound = reached_by(k, x, settings.top_k, thread, scores);
        if (settings.min_p > 0)
            bound = std::max(bound, rescored(k, x, leader, thread, scores) +
                                        settings.temperature * std::log(settings.min_p));
    }
    // Rounding of sums of this size, which a margin near zero does not cover
    pass.reach.bound = bound - 1e-5f * (1 + std::fabs(bound));
    scores[leader] = std::numeric_limits<float>::infinity();
}

// Note the rows of [begin, end) that can still matter.
void Head::scan(const Kernels &k, int t, int begin, int end, int thread) {
    const float *scores = scores_.data() + std::ptrdiff_t{t} * vocab_;
    std::vector<std::int32_t> &reaching = found(t, thread).reaching;
    std::int32_t rows[kScanRows];
    for (int first = begin; first < end; first += kScanRows) {
        const int count = k.reaching(screen_, passes_[static_cast<std::size_t>(t)].reach, scores,
                                     first, std::min(first + kScanRows, end), rows);
        reaching.insert(reaching.end(), rows, rows + count);
    }
}

// All candidates; false when they are too many to be worth it, or none.
bool Head::gather(int t) {
    std::vector<Candidate> &candidates = candidates_[static_cast<std::size_t>(t)];
    candidates.clear();
    for (int i = 0; i < threads_; ++i) {
        for (const std::int32_t row : found(t, i).reaching) candidates.push_back({0, row});
        found(t, i).reaching.clear();
    }
    if (candidates.size() > static_cast<std::size_t>(vocab_) / 8) return false;
    // Who found a row is chance
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate &a, const Candidate &b) { return a.id < b.id; });
    for (const std::int32_t id : passes_[static_cast<std::size_t>(t)].adjusted)
        candidates.push_back({0, id});
    return !candidates.empty(); // else no score is a number
}

} // namespace trilobit
