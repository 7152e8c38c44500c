#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace trilobit {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
std::uint64_t mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

} // namespace

void Sampler::observe(std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) generated_.try_emplace(id, 0);
}

void Sampler::accept(std::int32_t id) {
    ++generated_[id];
    ++drawn_;
}

std::int32_t Sampler::sample(float *logits, int n) {
    adjust(logits, n);
    std::int32_t id;
    if (settings_.temperature == 0)
        id = static_cast<std::int32_t>(std::max_element(logits, logits + n) - logits);
    else
        id = draw(logits, n);
    accept(id);
    return id;
}

void Sampler::adjust(float *logits, int n) const {
    const SamplerSettings &s = settings_;
    if (s.repetition_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0)
        for (const auto &[id, times] : generated_) {
            if (id < 0 || id >= n) continue;
            float &logit = logits[id];
            logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
            if (times > 0)
                logit -= s.frequency_penalty * static_cast<float>(times) + s.presence_penalty;
        }
    for (const auto &[id, bias] : s.logit_bias)
        if (id >= 0 && id < n) logits[id] += bias;
}

std::int32_t Sampler::draw(const float *logits, int n) {
    const SamplerSettings &s = settings_;
    const float top = *std::max_element(logits, logits + n);
    if (!(top > -INFINITY)) return 0; // nothing can be chosen: every logit is -inf
    // Below e^-50 of the largest, even 2^18 tokens weigh less than the last bit of a random number.
    const float floor = top - 50 * s.temperature;
    std::vector<Candidate> &c = candidates_;
    c.clear();
    for (int i = 0; i < n; ++i)
        if (logits[i] >= floor) c.push_back({logits[i], i});

    const auto larger = [](const Candidate &a, const Candidate &b) {
        return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
    };
    if (s.top_k > 0 && static_cast<std::size_t>(s.top_k) < c.size()) {
        std::nth_element(c.begin(), c.begin() + (s.top_k - 1), c.end(), larger);
        c.resize(static_cast<std::size_t>(s.top_k));
    }
    double total = 0;
    for (Candidate &one : c) {
        one.weight = std::exp((one.weight - top) / s.temperature);
        total += double{one.weight};
    }
    if (s.top_p < 1) {
        // Sort only as far as the mass reaches.
        const double wanted = double{s.top_p} * total;
        double mass = 0;
        std::size_t kept = 0, sorted = 0;
        while (kept < c.size() && mass < wanted) {
            if (kept == sorted) {
                sorted = std::min(c.size(), sorted == 0 ? 64 : 4 * sorted);
                std::partial_sort(c.begin() + static_cast<std::ptrdiff_t>(kept),
                                  c.begin() + static_cast<std::ptrdiff_t>(sorted), c.end(), larger);
            }
            mass += double{c[kept++].weight};
        }
        c.resize(std::max<std::size_t>(kept, 1));
    }
    if (s.min_p > 0) // the largest weight is exp(0) = 1
        std::erase_if(c, [&](const Candidate &one) { return one.weight < s.min_p; });
    // Selection leaves an order that is not the same for every standard library.
    if (s.top_k > 0 || s.top_p < 1)
        std::sort(c.begin(), c.end(),
                  [](const Candidate &a, const Candidate &b) { return a.id < b.id; });
    total = 0;
    for (const Candidate &one : c) total += double{one.weight};
    double left = uniform() * total;
    for (const Candidate &one : c) {
        left -= double{one.weight};
        if (left < 0) return one.id;
    }
    return c.back().id; // rounding left a sliver beyond the last one
}

// In [0, 1), 53 bits, from the seed and the number of tokens so far.
double Sampler::uniform() const {
    return static_cast<double>(mix(mix(settings_.seed) + drawn_) >> 11) * 0x1.0p-53;
}

} // namespace trilobit
