// Choosing the next token of one sequence.
//
// Order: logit bias and penalties, temperature, top-k, top-p, min-p. The random numbers are a
// function of the seed and the number of tokens drawn, so a text does not depend on its batch.
#pragma once

#include <cstdint>
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
    std::vector<std::pair<std::int32_t, float>> logit_bias;
};

class Sampler {
  public:
    explicit Sampler(SamplerSettings settings) : settings_(std::move(settings)) {}

    // Tokens of the prompt: only the repetition penalty looks at them.
    void observe(std::span<const std::int32_t> ids);
    // A generated token.
    void accept(std::int32_t id);
    // Choose from `logits` [n], which are overwritten, and accept the choice.
    std::int32_t sample(float *logits, int n);

  private:
    struct Candidate {
        float weight; // logit first, then exp of it
        std::int32_t id;
    };

    void adjust(float *logits, int n) const;
    std::int32_t draw(const float *logits, int n);
    double uniform() const;

    SamplerSettings settings_;
    std::unordered_map<std::int32_t, int> generated_; // id -> times; 0 when only in the prompt
    std::uint64_t drawn_ = 0;
    std::vector<Candidate> candidates_;
};

} // namespace trilobit
