// The tokens that may be chosen, as a grammar leaves them: one bit each, the first the lowest.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace trilobit {

// Borrowed. Ids behind the last word are forbidden.
class Allowed {
  public:
    Allowed() = default; // all tokens
    explicit Allowed(std::span<const std::uint32_t> words) : words_(words), all_(false) {}

    bool all() const { return all_; }
    bool has(std::int32_t id) const {
        const std::size_t word = static_cast<std::size_t>(id) / kBits;
        return all_ || (word < words_.size() && words_[word] >> id % kBits & 1);
    }

    // The allowed ids below n, in order, unless they are more than `most`.
    bool few(int n, int most, std::vector<std::int32_t> *ids) const {
        ids->clear();
        if (all_) return false;
        int count = 0;
        for (int word = 0; word * kBits < n; ++word)
            if ((count += std::popcount(bits(word, n))) > most) return false;
        for (int word = 0; word * kBits < n; ++word)
            for (std::uint32_t left = bits(word, n); left; left &= left - 1)
                ids->push_back(word * kBits + std::countr_zero(left));
        return true;
    }

    // Make the logits of forbidden ids in [begin, end) -∞; logits[0] is of the id 0.
    void forbid_others(float *logits, int begin, int end) const {
        if (all_) return;
        for (int id = begin; id < end;) {
            const int first = id - id % kBits, last = std::min(first + kBits, end);
            const std::uint32_t here = bits(first / kBits, end);
            if (here == ~std::uint32_t{0}) {
                id = last;
                continue;
            }
            for (; id < last; ++id)
                if (!(here >> id % kBits & 1)) logits[id] = -std::numeric_limits<float>::infinity();
        }
    }

  private:
    static constexpr int kBits = 32;

    // A word, without the ids from n on.
    std::uint32_t bits(int word, int n) const {
        if (static_cast<std::size_t>(word) >= words_.size()) return 0;
        const int left = n - word * kBits;
        const std::uint32_t mine = words_[static_cast<std::size_t>(word)];
        return left >= kBits ? mine : mine & ((std::uint32_t{1} << left) - 1);
    }

    std::span<const std::uint32_t> words_;
    bool all_ = true;
};

} // namespace trilobit
