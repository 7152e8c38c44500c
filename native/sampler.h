// Choosing the next token of one sequence.
//
// Order: logit bias and penalties, temperature, top-k, top-p, min-p. Among what is left a token
// wins by the largest logit / temperature + Gumbel noise, which draws from the softmax (Gumbel
// 1954; Maddison et al. 2014). The noise is a function of the seed, the number of tokens drawn and
// the token: a text does not depend on its batch, and the winner of all tokens is the winner of any
// few tokens that include it.
#pragma once

#include "allowed.h"
#include "kernels.h"

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

namespace trilobit {

struct SamplerSettings {
    float temperature = 1; // 0: the largest logit, the first of equals
    int top_k = 0;         // 0: off
    float top_p = 1;
    float min_p = 0;
    float repetition_penalty = 1; // divides positive, multiplies negative logits of seen tokens
    float frequency_penalty = 0;  // subtracted once for each time a token was generated
    float presence_penalty = 0;   // subtracted once when it was generated at all
    std::uint64_t seed = 0;
    std::unordered_map<std::int32_t, float> logit_bias;
    std::uint64_t min_tokens = 0;   // before so many were drawn,
    std::vector<std::int32_t> ends; // none of these may be; in order
};

struct Candidate {
    float logit;
    std::int32_t id;
};

// In place of a token where none can be chosen: all are forbidden, or the largest logit is infinite
// or none is a number. The sampler stays as it was.
inline constexpr std::int32_t kAllForbidden = -1, kNotNumbers = -2;

class Sampler {
  public:
    explicit Sampler(SamplerSettings settings)
        : settings_(std::make_shared<const SamplerSettings>(std::move(settings))) {}

    // Tokens of the prompt: only the repetition penalty looks at them.
    void observe(std::span<const std::int32_t> ids);
    // A generated token.
    void accept(std::int32_t id);
    // What may be chosen, until this is called again; borrowed.
    void allow(const Allowed &allowed) { allowed_ = allowed; }
    // Choose from `logits` [n], which are overwritten, and accept the choice.
    std::int32_t sample(const Kernels &k, float *logits, int n);
    // This sampler as it will stand if `ids` are generated next. It reads this one's history, so
    // this one must outlive it and stay as it is meanwhile.
    Sampler after(std::span<const std::int32_t> ids) const;

    // ---- for who knows which tokens can matter ----

    const SamplerSettings &settings() const { return *settings_; }
    const Allowed &allowed() const { return allowed_; }
    // Top-p weighs the whole distribution: no few tokens decide it.
    bool needs_every_logit() const { return settings_->temperature > 0 && settings_->top_p < 1; }
    // All tokens take part in the race: noise may be added before anything is left out.
    bool races() const {
        return settings_->temperature > 0 && settings_->top_k == 0 && settings_->min_p == 0 &&
               settings_->top_p >= 1;
    }
    std::uint32_t noise_key() const;
    // Allowed ids below n, in order, whose logits bias and penalties change.
    void adjusted(std::vector<std::int32_t> *ids, int n) const;
    float adjusted_logit(std::int32_t id, float logit) const;
    // Choose from candidates with adjusted logits, and accept the choice.
    std::int32_t choose(const Kernels &k, std::vector<Candidate> &candidates);

  private:
    Sampler(const Sampler &base, std::uint64_t drawn)
        : settings_(base.settings_), base_(&base), drawn_(drawn) {}
    bool penalises() const {
        return settings_->repetition_penalty != 1 || settings_->frequency_penalty != 0 ||
               settings_->presence_penalty != 0;
    }
    bool may_end() const { return drawn_ >= settings_->min_tokens; }
    // How often a token was generated; 0 when it is only in the prompt, -1 when nowhere.
    int times(std::int32_t id) const;
    void filter(std::vector<Candidate> &candidates) const;
    float least_that_wins(float top) const;
    std::int32_t none_of(bool numbers) const;

    std::shared_ptr<const SamplerSettings> settings_;
    const Sampler *base_ = nullptr;                   // knows the tokens before `after`
    std::unordered_map<std::int32_t, int> generated_; // id -> `times`, of those changed since
    std::uint64_t drawn_ = 0;
    Allowed allowed_;
    std::vector<Candidate> candidates_;
};

} // namespace trilobit
