#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trilobit {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

bool larger(const Candidate &a, const Candidate &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

} // namespace

void Sampler::observe(std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) generated_.try_emplace(id, 0);
}

void Sampler::accept(std::int32_t id) {
    generated_[id] = std::max(times(id), 0) + 1;
    ++drawn_;
}

Sampler Sampler::after(std::span<const std::int32_t> ids) const {
    Sampler ahead(*this, drawn_);
    for (const std::int32_t id : ids) ahead.accept(id);
    return ahead;
}

int Sampler::times(std::int32_t id) const {
    for (const Sampler *s = this; s; s = s->base_)
        if (const auto found = s->generated_.find(id); found != s->generated_.end())
            return found->second;
    return -1;
}

std::uint32_t Sampler::noise_key() const {
    return static_cast<std::uint32_t>(mix(mix(settings_->seed) + drawn_));
}

void Sampler::adjusted(std::vector<std::int32_t> *ids, int n) const {
    ids->clear();
    if (penalises())
        for (const Sampler *s = this; s; s = s->base_)
            for (const auto &[id, times] : s->generated_) ids->push_back(id);
    for (const auto &[id, bias] : settings_->logit_bias) ids->push_back(id);
    if (!may_end()) ids->insert(ids->end(), settings_->ends.begin(), settings_->ends.end());
    std::sort(ids->begin(), ids->end());
    ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
    std::erase_if(*ids, [&](std::int32_t id) { return id < 0 || id >= n || !allowed_.has(id); });
}

float Sampler::adjusted_logit(std::int32_t id, float logit) const {
    const SamplerSettings &s = *settings_;
    if (!may_end() && std::binary_search(s.ends.begin(), s.ends.end(), id)) return -INFINITY;
    if (penalises())
        if (const int seen = times(id); seen >= 0) {
            logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
            if (seen > 0)
                logit -= s.frequency_penalty * static_cast<float>(seen) + s.presence_penalty;
        }
    if (const auto bias = s.logit_bias.find(id); bias != s.logit_bias.end()) logit += bias->second;
    return logit;
}

std::int32_t Sampler::sample(const Kernels &k, float *logits, int n) {
    std::vector<std::int32_t> ids;
    adjusted(&ids, n);
    for (const std::int32_t id : ids) logits[id] = adjusted_logit(id, logits[id]);
    allowed_.forbid_others(logits, 0, n);
    const int best = k.largest(logits, n);
    if (best < 0) return none_of(std::none_of(logits, logits + n, [](float x) { return x != x; }));
    const float floor = least_that_wins(logits[best]);
    candidates_.clear();
    for (std::int32_t id = 0; id < n; ++id)
        if (logits[id] >= floor) candidates_.push_back({logits[id], id});
    return choose(k, candidates_);
}

// Noise is from -3 to 17: what is further behind the largest logit cannot win.
float Sampler::least_that_wins(float top) const {
    return settings_->temperature > 0 ? top - 40 * settings_->temperature : top;
}

// numbers: no logit is NaN or +infinite, so all are -infinite
std::int32_t Sampler::none_of(bool numbers) const {
    const bool some = !settings_->logit_bias.empty() || !allowed_.all() || !may_end();
    return numbers && some ? kAllForbidden : kNotNumbers;
}

std::int32_t Sampler::choose(const Kernels &k, std::vector<Candidate> &candidates) {
    bool numbers = true;
    float top = -INFINITY;
    std::erase_if(candidates, [&](const Candidate &one) {
        numbers = numbers && !std::isnan(one.logit);
        top = std::max(top, one.logit); // unless that is no number
        return !(one.logit > -INFINITY);
    });
    if (candidates.empty() || top == INFINITY) return none_of(numbers && top < INFINITY);
    // The same candidates, whoever has found them, give top-p the same sum.
    const float floor = least_that_wins(top);
    std::erase_if(candidates, [floor](const Candidate &one) { return one.logit < floor; });
    Candidate winner = candidates.front();
    if (settings_->temperature == 0) {
        for (const Candidate &one : candidates)
            if (larger(one, winner)) winner = one;
    } else {
        filter(candidates);
        const std::uint32_t key = noise_key();
        winner.logit = -INFINITY;
        for (const Candidate &one : candidates) {
            float noise;
            k.gumbel(key, one.id, 1, &noise);
            const Candidate entry{one.logit / settings_->temperature + noise, one.id};
            if (larger(entry, winner)) winner = entry;
        }
    }
    accept(winner.id);
    return winner.id;
}

// Top-k, top-p and min-p.
void Sampler::filter(std::vector<Candidate> &candidates) const {
    const SamplerSettings &s = *settings_;
    std::vector<Candidate> &c = candidates;
    if (s.top_k > 0 && static_cast<std::size_t>(s.top_k) < c.size()) {
        std::nth_element(c.begin(), c.begin() + (s.top_k - 1), c.end(), larger);
        c.resize(static_cast<std::size_t>(s.top_k));
    }
    const float top = std::max_element(c.begin(), c.end(), [](const auto &a, const auto &b) {
                          return a.logit < b.logit;
                      })->logit;
    const auto weight = [&](const Candidate &one) {
        return std::exp((one.logit - top) / s.temperature);
    };
    if (s.top_p < 1) {
        double total = 0;
        for (const Candidate &one : c) total += double{weight(one)};
        // Sort only as far as the mass reaches. A top_p that rounds to 0 keeps the first.
        const double wanted = std::max(double{s.top_p}, std::numeric_limits<double>::min()) * total;
        double mass = 0;
        std::size_t kept = 0, sorted = 0;
        while (kept < c.size() && mass < wanted) {
            if (kept == sorted) {
                sorted = std::min(c.size(), sorted == 0 ? 64 : 4 * sorted);
                std::partial_sort(c.begin() + static_cast<std::ptrdiff_t>(kept),
                                  c.begin() + static_cast<std::ptrdiff_t>(sorted), c.end(), larger);
            }
            mass += double{weight(c[kept++])};
        }
        c.resize(std::max<std::size_t>(kept, 1));
    }
    if (s.min_p > 0) // the largest weight is exp(0) = 1
        std::erase_if(c, [&](const Candidate &one) { return weight(one) < s.min_p; });
}

} // namespace trilobit
