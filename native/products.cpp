// Products of the decoder's matrices: which rows and columns, on how many threads.

#include "decoder.h"

#include <algorithm>

namespace trilobit {
namespace {

constexpr int kCodes = 16; // that are counted for the cost of a float

// Counted in lanes as wide as what is counted, which every compiler makes vectors of.
int open_gates(const float *gate, int n) {
    int count = 0;
    for (int i = 0; i < n; ++i) count += gate[i] > 0;
    return count;
}

std::int64_t nonzero_codes(const std::int8_t *codes, std::int64_t n) {
    constexpr std::int64_t kMost = 240; // fit a byte
    std::int64_t count = 0;
    for (; n > 0; codes += kMost, n -= kMost) {
        std::uint8_t some = 0;
        if (n >= kMost)
            for (int i = 0; i < kMost; ++i) some += codes[i] != 0;
        else
            for (int i = 0; i < n; ++i) some += codes[i] != 0;
        count += some;
    }
    return count;
}

} // namespace

// gate_ becomes act(gate_) * up_, whose rows are whole.
void Decoder::gate_apart() {
    const int ffn = config_.intermediate_size;
    each_token(ffn, [&](std::ptrdiff_t t) {
        float *gate = gate_.data() + t * ffn_stride_;
        if (counts()) open_gates_ += static_cast<std::uint64_t>(open_gates(gate, ffn));
        k_.gate(config_.hidden_act, gate, up_.data() + t * ffn_stride_, ffn);
        std::fill(gate + ffn, gate + ffn_stride_, 0.0f);
    });
}

// The quantised tokens times several matrices in one parallel part. `gated`: the last is up_proj,
// and in the rows of a piece, gate_ becomes act(gate_) * up.
void Decoder::multiply(const Job *first, const Job *last, bool accumulate, bool gated) {
    if (first->projection->weight.order == Order::columns)
        return multiply_columns(*first, accumulate);
    const int ffn = config_.intermediate_size;
    const Ternary &up_proj = last[-1].projection->weight;
    const bool skipping = gated && skips(); // rows whose gate is closed
    if (skipping)
        each_token(up_proj.columns, [&](std::ptrdiff_t t) {
            k_.spread(up_proj, quantised_, static_cast<int>(t),
                      spread_.data() + t * up_proj.line_codes());
        });
    int groups = 0; // of all matrices in turn, or of each of those that are gated
    double ns = 0;
    for (const Job *job = first; job != last; ++job) {
        const Ternary &w = job->projection->weight;
        groups = gated ? w.groups() : groups + w.groups();
        ns += tokens_ * ns_of(w);
    }
    // Few tokens want one stream of weights; of many, what meets shall be in the cache.
    const bool few = tokens_ <= kFewTokens;
    const bool enough = groups >= 2 * kGatedGroups * pool_.threads();
    const auto piece = [&](int begin, int end, int thread) {
        void *scratch = scratch_of(thread);
        const auto rows = [&](const Job &job, int from, int to) {
            const Ternary &w = job.projection->weight;
            if (w.group_scales.data)
                k_.linear_groups(w, {quantised_}, from, to, job.out, job.stride, accumulate,
                                 scratch);
            else
                k_.linear(w, quantised_, from, to, job.out, job.stride, accumulate, scratch);
        };
        if (!gated) {
            for (const Job *job = first; job != last && end > 0; ++job) {
                const int count = job->projection->weight.groups();
                if (begin < count) rows(*job, std::max(begin, 0), std::min(end, count));
                begin -= count;
                end -= count;
            }
            return;
        }
        // Of many tokens, up is a thread's own, a few groups of rows wide.
        const int step = few ? end - begin : kGatedGroups, width = few ? ffn_stride_ : step * kRows;
        float *up = up_.data() + (few ? 0 : std::ptrdiff_t{thread} * tokens_ * width);
        for (; begin < end; begin += step) {
            const int stop = std::min(begin + step, end), row = begin * kRows;
            const int shift = few ? 0 : row; // of the first column of `up`
            for (const Job *job = first; job != last - 1; ++job) rows(*job, begin, stop);
            const int count = std::min(stop * kRows, ffn) - row;
            int open = 0;
            for (int t = 0; counts() && t < tokens_; ++t)
                open += open_gates(gate_.data() + std::ptrdiff_t{t} * ffn_stride_ + row, count);
            open_gates_ += static_cast<std::uint64_t>(open);
            const bool done = skipping && !all_is_faster(up_proj, 1.0 * open / tokens_ / count);
            if (done) skip_closed(up_proj, row, count, scratch);
            if (!done) rows({last[-1].projection, up - shift, width}, begin, stop);
            for (int t = 0; t < tokens_; ++t) {
                float *gate = gate_.data() + std::ptrdiff_t{t} * ffn_stride_ + row;
                if (!done)
                    k_.gate(config_.hidden_act, gate, up + std::ptrdiff_t{t} * width + row - shift,
                            count);
                std::fill(gate + count, gate + (stop * kRows - row), 0.0f);
            }
        }
    };
    pool_.split(groups, ns, piece, few || !enough ? 1 : kGatedGroups);
}

// Whether a pass over all rows or columns is faster than one over each token's share of them.
bool Decoder::all_is_faster(const Ternary &w, double share) const {
    return k_.all_is_faster(w.layout, share, tokens_);
}

// In the rows [row, row + count), gate_ becomes act(gate_) * up without the rows of up_proj whose
// gate is closed.
void Decoder::skip_closed(const Ternary &up_proj, int row, int count, void *scratch) {
    for (int t = 0; t < tokens_; ++t)
        k_.gated_rows(up_proj, quantised_, t,
                      spread_.data() + std::ptrdiff_t{t} * up_proj.line_codes(), row, row + count,
                      gate_.data() + std::ptrdiff_t{t} * ffn_stride_, scratch);
}

// How many of the codes at work are not zero.
void Decoder::count_codes() {
    each_token(quantised_.columns / kCodes, [&](std::ptrdiff_t t) {
        const std::int64_t n = quantised_.columns; // as many, though tokens lie among each other
        nonzero_codes_ += static_cast<std::uint64_t>(nonzero_codes(codes_.data() + t * n, n));
    });
}

// The same for a matrix in columns: those whose activation is zero are left out. Each thread sums
// over columns of its own, of few tokens, or takes tokens of its own.
void Decoder::multiply_columns(const Job &job, bool accumulate) {
    const Ternary &w = job.projection->weight;
    count_codes();
    const double open = static_cast<double>(nonzero_codes_) / tokens_ / w.columns;
    const double ns = open * tokens_ * ns_of(w);
    const int tokens_of_thread = std::min(capacity_.batch_tokens, kFewTokens);
    const std::ptrdiff_t apart = std::ptrdiff_t{tokens_of_thread} * w.line_codes();
    const auto sums = [&](int thread) { return sums_.data() + thread * apart; };
    if (all_is_faster(w, open)) {
        const auto piece = [&](int begin, int end, int thread) {
            k_.linear(w, quantised_, begin, end, job.out, job.stride, accumulate,
                      scratch_of(thread));
        };
        pool_.split(w.groups(), tokens_ * ns_of(w), piece, kLinePad * places_of(w.layout) / kRows);
    } else if (tokens_ <= kFewTokens) {
        pool_.split(w.columns, ns, [&](int begin, int end, int thread) {
            for (int t = 0; t < tokens_; ++t)
                k_.add_columns(w, quantised_, t, begin, end,
                               sums(thread) + std::ptrdiff_t{t} * w.line_codes(),
                               scratch_of(thread));
        });
        const double floats = 1.0 * tokens_ * w.rows * pool_.threads();
        pool_.split(w.groups(), k_.ns_of_floats(floats), [&](int begin, int end, int) {
            for (int t = 0; t < tokens_; ++t)
                k_.settle(w, quantised_, t, sums(0) + std::ptrdiff_t{t} * w.line_codes(), apart,
                          pool_.threads(), begin, end, job.out, job.stride, accumulate);
        });
    } else {
        pool_.split(tokens_, ns, [&](int begin, int end, int thread) {
            for (int t = begin; t < end; ++t) {
                k_.add_columns(w, quantised_, t, 0, w.columns, sums(thread), scratch_of(thread));
                k_.settle(w, quantised_, t, sums(thread), 0, 1, 0, w.groups(), job.out, job.stride,
                          accumulate);
            }
        });
    }
}

} // namespace trilobit
