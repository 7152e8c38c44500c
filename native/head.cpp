#include "head.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace trilobit {
namespace {

// Deviations between an approximate and the exact logit that are allowed for. The errors of a
// rotated row are close to Gaussian; of 10^12 of them, none is expected beyond 7.1.
constexpr float kDeviations = 8;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLargestCode = 1.5f; // of a plane
constexpr int kNoiseTokens = 512;    // noise made at a time
constexpr int kScanRows = 512;       // rows looked through at a time
constexpr int kLedRows = 128;        // the same, for leaders, which few of them have
// Rows of the fine plane that stay in an L2 cache for all tokens, divided by those: few of them are
// read for one. For one token, so many that few lists begin, whose first rows are waited for.
constexpr int kFineRows = 8192;
// Leaders of the coarse plane are not those of the head, but among some more of them those are. An
// exact row takes as long as eight second looks, of which a close bound saves thousands.
constexpr int kProbes = 16, kMostProbes = 128;
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

// Keep the `most` best rows so far; of equals the first.
void lead(const Kernels &k, const float *scores, int begin, int end, std::size_t most,
          std::vector<std::int32_t> *leaders) {
    const auto better = [&](std::int32_t a, std::int32_t b) { return leads(scores, a, b); };
    for (int first = begin; first < end; first += kLedRows) {
        const int count = std::min(kLedRows, end - first);
        const int best = k.largest(scores + first, count);
        if (best < 0) continue;
        if (leaders->size() == most && !leads(scores, first + best, leaders->front())) continue;
        for (std::int32_t row = first; row < first + count; ++row) {
            if (!(scores[row] > kMinusInfinity)) continue;
            if (leaders->size() == most) {
                if (!leads(scores, row, leaders->front())) continue;
                std::pop_heap(leaders->begin(), leaders->end(), better);
                leaders->pop_back();
            }
            leaders->push_back(row);
            std::push_heap(leaders->begin(), leaders->end(), better);
        }
    }
}

// How far the exact score of a row may lie above that of a plane.
float margin(const Reach &reach, float residual, float scale) {
    return (reach.residual_weight * residual + reach.scale_weight * scale) *
           reach.inverse_temperature;
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
    if (!screen.coarse.matrix.packed) return;
    const std::size_t columns = static_cast<std::size_t>(screen.coarse.matrix.columns);
    signs_ = Array<float>(columns);
    const float scale = 1.0f / std::sqrt(static_cast<float>(screen.block));
    for (std::size_t i = 0; i < columns; ++i)
        signs_[static_cast<std::ptrdiff_t>(i)] = sign_of(static_cast<std::uint32_t>(i)) * scale;
    rotated_ = Array<float>(n * columns);
    codes_ = Array<std::int8_t>(n * columns);
    spread_ = Array<std::int8_t>(n * static_cast<std::size_t>(screen.fine.matrix.line_codes()));
    code_scales_ = Array<float>(n);
    code_sums_ = Array<std::int32_t>(n);
    passes_.resize(n);
    found_.resize(n * static_cast<std::size_t>(threads));
    candidates_.resize(n);
}

// Of a screen the first look, which is as long as a ternary product; of that, both bytes.
double Head::ns(const Kernels &k, int tokens) const {
    const double columns = ternary_.packed ? ternary_.columns : rows_.all().columns;
    const double values = columns * vocab_ * tokens;
    if (ternary_.packed) return k.ns_of_products(2 * values);
    return screen_.coarse.matrix.packed ? k.ns_of_products(values) : k.ns_of_floats(values);
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
    const bool screened =
        screen_.coarse.matrix.packed && std::none_of(many_.begin(), many_.end(), every);
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
    const Ternary &coarse = screen_.coarse.matrix;
    const auto choice = [&](int t) { return many_[static_cast<std::size_t>(t)]; };
    const Activations codes{codes_.data(), code_scales_.data(), code_sums_.data(),
                            tokens,        coarse.columns,      k.tile_tokens(tokens)};
    pool.each(tokens, k.ns_of_floats(8.0 * coarse.columns * tokens),
              [&](int t, int) { prepare(k, codes, t, choice(t).x, *choice(t).sampler); });
    // f(token, begin, end, thread) for `step` rows at a time, of all tokens in turn
    const auto each_range = [&](int step, double ns, auto f) {
        pool.split(coarse.groups(), ns, [&](int begin, int end, int thread) {
            const int stop = std::min(end * kRows, vocab_);
            for (int row = begin * kRows; row < stop; row += step)
                for (int t = 0; t < tokens; ++t) f(t, row, std::min(row + step, stop), thread);
        });
    };
    const double scan_ns = k.ns_of_floats(2 * vocab * tokens), look_ns = ns(k, tokens);
    pool.split(coarse.groups(), look_ns, [&](int begin, int end, int) {
        k.coarse(coarse, codes, begin, end, scores_.data(), vocab_);
    });
    each_range(vocab_, scan_ns, [&](int t, int begin, int end, int thread) {
        race(k, t, choice(t).sampler->allowed(), begin, end, thread);
    });
    pool.each(tokens, k.ns_of_floats(vocab * tokens),
              [&](int t, int thread) { set_bound(k, t, choice(t).x, *choice(t).sampler, thread); });
    // The second look takes about a quarter of the first.
    const int step = std::max(kFineRows / tokens / kScanRows, 1) * kScanRows;
    each_range(step, scan_ns + look_ns / 4, [&](int t, int begin, int end, int thread) {
        look_again(k, codes, t, begin, end, thread);
    });
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
    const int n = out.columns;
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
    // Rounded down: a score that is half a code off is too large, so that no row is lost by it.
    out.sums[t] = (3 * sum) >> 1;
    k.spread(screen_.fine.matrix, out, t,
             spread_.data() + std::ptrdiff_t{t} * screen_.fine.matrix.line_codes());
    Pass &pass = passes_[static_cast<std::size_t>(t)];
    // |Σ residual·x| has the deviation |residual|·|x|/√n; |row| is at most 3/2·scale·√n.
    pass.reach.residual_weight = kDeviations * static_cast<float>(std::sqrt(norm / n));
    pass.reach.scale_weight = kDeviations * kLargestCode * static_cast<float>(std::sqrt(error));
    pass.noisy = sampler.races();
    pass.noise_key = sampler.noise_key();
    // 1 where the noise is not added yet
    pass.reach.inverse_temperature = pass.noisy ? 1.0f / sampler.settings().temperature : 1.0f;
    const bool filtered = !pass.noisy && sampler.settings().temperature > 0;
    const int rank = filtered ? std::max(1, sampler.settings().top_k) : 1;
    pass.rank = static_cast<std::size_t>(rank);
    pass.probes = pass.rank + static_cast<std::size_t>(std::min(std::int64_t{kProbes} * rank,
                                                                std::int64_t{kMostProbes}));
    sampler.adjusted(&pass.adjusted, vocab_);
}

// Turn the approximate logits of rows [begin, end) into scores (with noise where the winner of the
// noisy logits is wanted) and find the leaders. Tokens that bias or penalties change stand aside,
// and forbidden ones are out.
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
    lead(k, scores, begin, end, pass.probes, &found(t, thread).leaders);
}

// The exact logit of one row, which takes the place of its score.
float Head::rescored(const Kernels &k, const float *x, int row, int thread, float *scores) {
    k.dense(rows_.row(row, thread), 0, 1, x, 0, 1, scores + row, 0);
    return scores[row];
}

// The score that a row must be able to reach to matter. Leaders are computed for it, and then known
// to reach it or not, whatever the fine plane would say.
void Head::set_bound(const Kernels &k, int t, const float *x, const Sampler &sampler, int thread) {
    Pass &pass = passes_[static_cast<std::size_t>(t)];
    const SamplerSettings &settings = sampler.settings();
    float *scores = scores_.data() + std::ptrdiff_t{t} * vocab_;
    std::vector<std::int32_t> leaders;
    for (int i = 0; i < threads_; ++i) {
        const auto &some = found(t, i).leaders;
        leaders.insert(leaders.end(), some.begin(), some.end());
    }
    std::sort(leaders.begin(), leaders.end(),
              [&](std::int32_t a, std::int32_t b) { return leads(scores, a, b); });
    leaders.resize(std::min(leaders.size(), pass.probes));
    std::vector<Candidate> exact; // scores of leaders
    std::vector<float> best;      // of those up to the rank, the least in front
    float most = kMinusInfinity;
    for (const std::int32_t row : leaders) {
        if (best.size() == pass.rank) {
            const float above = margin(pass.reach, screen_.coarse.residuals[row],
                                       screen_.coarse.matrix.scales[row]);
            if (scores[row] + above < best.front()) continue;
        }
        float noise = 0;
        if (pass.noisy) k.gumbel(pass.noise_key, row, 1, &noise);
        exact.push_back(
            {rescored(k, x, row, thread, scores) * pass.reach.inverse_temperature + noise, row});
        most = std::max(most, exact.back().logit);
        best.push_back(exact.back().logit);
        std::push_heap(best.begin(), best.end(), std::greater<>());
        if (best.size() <= pass.rank) continue;
        std::pop_heap(best.begin(), best.end(), std::greater<>());
        best.pop_back();
    }
    float bound = leaders.empty() ? std::numeric_limits<float>::infinity() : kMinusInfinity;
    const bool raced = pass.noisy || settings.temperature == 0;
    if ((raced || settings.top_k > 0) && best.size() == pass.rank) bound = best.front();
    // Filters come before the noise: what can pass them, not what can win
    if (!raced && settings.min_p > 0)
        bound = std::max(bound, most + settings.temperature * std::log(settings.min_p));
    // Rounding of sums of this size, which a margin near zero does not cover
    pass.reach.bound = bound - 1e-5f * (1 + std::fabs(bound));
    for (const Candidate &one : exact)
        scores[one.id] =
            one.logit < pass.reach.bound ? kMinusInfinity : std::numeric_limits<float>::infinity();
}

// Of the rows [begin, end) that can still matter by the coarse plane, note those that can by both.
void Head::look_again(const Kernels &k, const Activations &codes, int t, int begin, int end,
                      int thread) {
    const Reach &reach = passes_[static_cast<std::size_t>(t)].reach;
    const Ternary &coarse = screen_.coarse.matrix, &fine = screen_.fine.matrix;
    float *scores = scores_.data() + std::ptrdiff_t{t} * vocab_;
    std::vector<std::int32_t> &reaching = found(t, thread).reaching;
    const auto known = static_cast<std::ptrdiff_t>(reaching.size());
    std::int32_t rows[kScanRows];
    for (int first = begin; first < end; first += kScanRows) {
        const int count = k.reaching(screen_.coarse, reach, scores, first,
                                     std::min(first + kScanRows, end), rows);
        reaching.insert(reaching.end(), rows, rows + count);
    }
    const int count = static_cast<int>(static_cast<std::ptrdiff_t>(reaching.size()) - known);
    k.fine(fine, codes, t, spread_.data() + std::ptrdiff_t{t} * fine.line_codes(),
           reaching.data() + known, count, reach.inverse_temperature, scores);
    second_looks_.fetch_add(static_cast<std::uint64_t>(count), std::memory_order_relaxed);
    const auto falls_short = [&](std::int32_t row) {
        const float scale = coarse.scales[row] + fine.scales[row];
        return scores[row] + margin(reach, screen_.fine.residuals[row], scale) < reach.bound;
    };
    reaching.erase(std::remove_if(reaching.begin() + known, reaching.end(), falls_short),
                   reaching.end());
}

// All candidates; false when they are too many to be worth it, or none.
bool Head::gather(int t) {
    std::vector<Candidate> &candidates = candidates_[static_cast<std::size_t>(t)];
    candidates.clear();
    for (int i = 0; i < threads_; ++i) {
        for (const std::int32_t row : found(t, i).reaching) candidates.push_back({0, row});
        found(t, i).reaching.clear();
        found(t, i).leaders.clear();
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
