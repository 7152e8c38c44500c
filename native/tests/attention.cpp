// The KV cache, and attention over it.

#include "check.h"
#include "tests.h"

#include <algorithm>
#include <limits>

namespace trilobit::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr KvType kKvTypes[] = {KvType::f32, KvType::f16, KvType::i8};
constexpr const char *kKvNames[] = {"f32", "f16", "i8"};

const char *name_of(KvType type) { return kKvNames[static_cast<int>(type)]; }

// Element i of a block, which belongs to position `slot`.
double stored(const void *block, KvType type, int head_dim, int i, int slot) {
    if (type == KvType::i8) {
        const std::int8_t *codes = static_cast<const std::int8_t *>(block);
        float scale;
        std::memcpy(&scale, codes + head_dim * kKvBlock + 4 * slot, 4);
        return static_cast<double>(codes[i]) * double{scale};
    }
    return element({block, type == KvType::f32 ? Float::f32 : Float::f16, 1, 1}, size(i));
}

void store(const Kernels &k, Check &check) {
    constexpr int kHeadDim = 16, kSlot = 5;
    // ties of float16's mantissa, subnormals, what is too large, zeros of both signs
    const float values[kHeadDim] = {1,          1 + 0x1p-11f, 1 + 0x3p-11f, -0.3f,       0x1p-14f,
                                    0x1.8p-25f, 0x1p-25f,     0x1p-26f,     -0x7.5p-24f, 65504,
                                    65519,      65520,        -1e9f,        0,           -0.0f,
                                    3.14159274f};
    for (const KvType type : kKvTypes) {
        check.begin(std::string(k.name) + " store " + name_of(type));
        const std::size_t bytes = size(kv_block_bytes(type, kHeadDim));
        std::vector<unsigned char> keys(bytes), rows(bytes);
        float given[kHeadDim];
        for (int d = 0; d < kHeadDim; ++d) // 8-bit codes of what spans 14 decades would be zeros
            given[d] = type == KvType::i8 ? std::clamp(values[d], -4.0f, 4.0f) : values[d];
        k.store_key(given, kHeadDim, keys.data(), kSlot, type);
        k.store_value(given, kHeadDim, rows.data(), kSlot, type);
        for (int d = 0; d < kHeadDim; ++d)
            for (int slot = 0; slot < kKvBlock; ++slot) {
                const double x = double{given[d]};
                const double wanted = slot != kSlot ? 0 : type == KvType::f16 ? nearest_f16(x) : x;
                // Half a step of the largest, and the roundings of scale and code
                const double step = type == KvType::i8 && slot == kSlot ? 4.0 / 127 : 0;
                const double tolerance = step * (0.5 + 127 * 4 * kUnit);
                check.close(stored(keys.data(), type, kHeadDim, d * kKvBlock + slot, slot), wanted,
                            tolerance, d);
                check.close(stored(rows.data(), type, kHeadDim, slot * kHeadDim + d, slot), wanted,
                            tolerance, d);
            }
    }
}

// Keys and values of one head for `positions` positions, in blocks as in the cache.
struct Cache {
    std::vector<std::vector<unsigned char>> blocks;
    std::vector<const void *> keys, values;
    KvType type;
    int head_dim;

    Cache(const Kernels &k, Random &random, KvType type, int head_dim, int positions)
        : type(type), head_dim(head_dim) {
        for (int p = 0; p < positions; ++p) {
            if (p % kKvBlock == 0)
                for (auto *list : {&keys, &values}) {
                    blocks.emplace_back(size(kv_block_bytes(type, head_dim)));
                    list->push_back(blocks.back().data());
                }
            unsigned char *key = blocks[blocks.size() - 2].data(), *value = blocks.back().data();
            k.store_key(random.floats(size(head_dim), -2, 2).data(), head_dim, key, p % kKvBlock,
                        type);
            k.store_value(random.floats(size(head_dim), -2, 2).data(), head_dim, value,
                          p % kKvBlock, type);
        }
    }

    double key(int position, int d) const {
        return stored(keys[size(position / kKvBlock)], type, head_dim,
                      d * kKvBlock + position % kKvBlock, position % kKvBlock);
    }
    double value(int position, int d) const {
        return stored(values[size(position / kKvBlock)], type, head_dim,
                      position % kKvBlock * head_dim + d, position % kKvBlock);
    }

    // softmax(query · keys) · values over the positions [first, visible), and the error allowed.
    std::vector<double> attention(const float *query, int first, int visible,
                                  double *tolerance) const {
        std::vector<double> scores, out(size(head_dim));
        double top = -1e300, magnitude = 0, total = 0;
        for (int p = first; p < visible; ++p) {
            double score = 0, absolute = 0;
            for (int d = 0; d < head_dim; ++d) {
                score += double{query[d]} * key(p, d);
                absolute += std::abs(double{query[d]} * key(p, d));
            }
            scores.push_back(score);
            top = std::max(top, score);
            magnitude = std::max(magnitude, absolute);
        }
        for (int p = first; p < visible; ++p) {
            const double weight = std::exp(scores[size(p - first)] - top);
            total += weight;
            for (int d = 0; d < head_dim; ++d) out[size(d)] += weight * value(p, d);
        }
        for (double &x : out) x /= total;
        // A score is a sum of head_dim products; its error moves a weight by that much relatively,
        // above and below the line. exp has 2e-7, sums the rest.
        const double score_error = head_dim * kUnit * magnitude;
        *tolerance = 2 * (2 * score_error + 2e-7 + visible * kUnit);
        return out;
    }
};

// What float16 cannot hold is cut to what it can, and told.
void cut(const Kernels &k, Check &check) {
    constexpr int kHeadDim = 32;
    check.begin(std::string(k.name) + " keys and values beyond float16");
    for (const KvType type : kKvTypes)
        for (const float x : {0.0f, 65504.0f, -65504.0f, 65505.0f, -1e30f})
            for (const int d : {0, 13, kHeadDim - 1}) {
                std::vector<unsigned char> block(size(kv_block_bytes(type, kHeadDim)));
                std::vector<float> from(kHeadDim, 1.0f);
                from[size(d)] = x;
                const bool beyond = type == KvType::f16 && std::abs(x) > 65504;
                check.that(k.store_key(from.data(), kHeadDim, block.data(), 3, type) == beyond,
                           "a key tells whether it was cut");
                check.that(k.store_value(from.data(), kHeadDim, block.data(), 3, type) == beyond,
                           "so does a value");
            }
}

void attend(const Kernels &k, Check &check) {
    constexpr int kPositions = kSpan + 150;
    constexpr int kKinds = 8;
    constexpr int kVisible[kKinds] = {kPositions, 1, kSpan, kSpan + 1, 33, 32, 200, kSpan - 1};
    // Windows that begin in the first block, at its edges, far into and behind the first span
    constexpr int kFirst[kKinds] = {kSpan + 70, 0, 31, kSpan, 32, 5, 160, kSpan - 2};
    Random random(6);
    for (const KvType type : kKvTypes)
        for (const auto &[head_dim, windows] :
             {std::pair(16, false), {112, false}, {128, false}, {16, true}, {256, true}}) {
            const Cache cache(k, random, type, head_dim, kPositions);
            const std::vector<float> queries = random.floats(size(kMaxQueries, head_dim), -1, 1);
            const float *query[kMaxQueries];
            for (int q = 0; q < kMaxQueries; ++q) query[q] = queries.data() + q * head_dim;
            std::vector<float> earlier(size(kMaxQueries, head_dim));
            std::size_t before = 0;
            std::vector<float> scratch(size(kKvBlock, head_dim));
            for (const int count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, kMaxQueries}) {
                check.begin(std::string(k.name) + " attend " + name_of(type) + ", head_dim " +
                            std::to_string(head_dim) + (windows ? ", windows, " : ", ") +
                            std::to_string(count) + " queries");
                const std::size_t n = size(count, head_dim);
                std::vector<float> running(n), weighted(n), out(n);
                float maximum[kMaxQueries], sum[kMaxQueries];
                float running_maximum[kMaxQueries], running_sum[kMaxQueries] = {};
                std::fill_n(running_maximum, kMaxQueries, -kInfinity);
                for (int span = 0; span < 2; ++span) {
                    int first[kMaxQueries], visible[kMaxQueries];
                    for (int q = 0; q < count; ++q) {
                        first[q] = (windows ? kFirst[q % kKinds] : 0) - span * kSpan;
                        visible[q] = std::min(kVisible[q % kKinds] - span * kSpan, kSpan);
                    }
                    const int block = span * kSpan / kKvBlock;
                    k.attend({query, first, visible, count, cache.keys.data() + block,
                              cache.values.data() + block, head_dim, maximum, sum, weighted.data(),
                              scratch.data()},
                             type);
                    for (int q = 0; q < count; ++q) {
                        float *own = weighted.data() + q * head_dim;
                        if (visible[q] > 0 && first[q] < kSpan) {
                            k.merge(&running_maximum[q], &running_sum[q],
                                    running.data() + q * head_dim, maximum[q], sum[q], own,
                                    head_dim);
                            continue;
                        }
                        check.that(
                            maximum[q] == -kInfinity && sum[q] == 0 &&
                                std::all_of(own, own + head_dim, [](float x) { return x == 0; }),
                            "keys that nobody sees weigh nothing");
                    }
                }
                for (int q = 0; q < count; ++q) {
                    float *got = out.data() + q * head_dim;
                    k.finish(running.data() + q * head_dim, running_sum[q], head_dim, got);
                    double tolerance;
                    const std::vector<double> wanted =
                        cache.attention(query[q], windows ? kFirst[q % kKinds] : 0,
                                        kVisible[q % kKinds], &tolerance);
                    for (int d = 0; d < head_dim; ++d)
                        check.close(got[d], wanted[size(d)], 2 * tolerance, d); // values are ≤ 2
                }
                // Queries that ran before, with fewer beside them: that changes no bit.
                check.same(out.data(), earlier.data(), before);
                earlier = out;
                before = n;
            }
        }
}

// One query sees keys whose scores are exact, and values that are rows of the identity: what comes
// out are the weights themselves.
void exponential(const Kernels &k, Check &check) {
    constexpr int kHeadDim = 16;
    std::vector<float> block(size(kHeadDim, kKvBlock)), identity(block.size());
    const std::vector<float> query = [] {
        std::vector<float> one(kHeadDim);
        one[0] = 1;
        return one;
    }();
    for (int i = 0; i < kHeadDim; ++i) identity[size(i, kHeadDim) + size(i)] = 1;
    const float *queries = query.data();
    const void *keys = block.data(), *values = identity.data();
    const int first = 0, visible = kHeadDim;
    check.begin(std::string(k.name) + " exponential");
    for (int step = 1; step < 600; ++step) {
        for (int i = 0; i < kHeadDim; ++i) // transposed: the first dimension of all keys
            block[size(i)] = -0x1p-7f * static_cast<float>(step * i);
        float maximum, sum, weights[kHeadDim], scratch[kKvBlock * kHeadDim];
        k.attend({&queries, &first, &visible, 1, &keys, &values, kHeadDim, &maximum, &sum, weights,
                  scratch},
                 KvType::f32);
        for (int i = 0; i < kHeadDim; ++i) {
            const double wanted = std::exp(double{block[size(i)]});
            check.close(weights[i], wanted, 2e-7 * wanted, i);
        }
    }
}

} // namespace

void test_attention(const Kernels &k, Check &check) {
    store(k, check);
    cut(k, check);
    attend(k, check);
    exponential(k, check);
}

} // namespace trilobit::test
