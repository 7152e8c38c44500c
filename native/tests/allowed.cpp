// Sets of allowed tokens, against plain loops.

#include "check.h"
#include "tests.h"

#include "../allowed.h"

namespace trilobit::test {

void test_allowed(Check &check) {
    Random random(17);
    check.that(Allowed().all() && Allowed().has(12345), "everything is allowed from the start");
    for (const int vocab : {1, 31, 32, 33, 100, 331})
        for (const int words : {0, 1, (vocab + 31) / 32}) {
            check.begin("allowed " + shape_of(words, vocab));
            std::vector<std::uint32_t> bits(size(words));
            for (std::uint32_t &word : bits) {
                word = static_cast<std::uint32_t>(random.bits());
                if (random.between(0, 3) == 0) word = ~std::uint32_t{0};
            }
            const Allowed allowed{std::span<const std::uint32_t>(bits)};
            std::vector<std::int32_t> wanted, ids;
            for (int id = 0; id < vocab; ++id) {
                const bool has = id / 32 < words && bits[size(id / 32)] >> id % 32 & 1;
                check.that(allowed.has(id) == has, "a token is in the set");
                if (has) wanted.push_back(id);
            }
            const int count = static_cast<int>(wanted.size());
            check.that(allowed.few(vocab, count, &ids) && ids == wanted, "they are told in order");
            check.that(count == 0 || !allowed.few(vocab, count - 1, &ids), "unless they are many");
            for (const int begin : {0, vocab / 3, vocab})
                for (const int end : {begin, (begin + vocab) / 2, vocab}) {
                    std::vector<float> logits = random.floats(size(vocab), -1, 1), plain = logits;
                    allowed.forbid_others(logits.data(), begin, end);
                    for (int id = begin; id < end; ++id)
                        if (!allowed.has(id)) plain[size(id)] = -INFINITY;
                    check.same(logits.data(), plain.data(), plain.size());
                }
        }
}

} // namespace trilobit::test
