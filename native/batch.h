// The tokens of one forward, of any mixture of sequences.
#pragma once

#include <cstdint>
#include <span>

namespace trilobit {

// Tokens of one sequence are contiguous and in order. Sequence s keeps positions
// [kKvBlock * b, kKvBlock * (b + 1)) in block block_tables[s * table_stride + b].
struct Batch {
    std::span<const std::int32_t> token_ids;
    std::span<const std::int32_t> positions;
    std::span<const std::int32_t> sequence;
    const std::int32_t *block_tables;
    int table_stride;
    std::span<const std::int32_t> output_rows; // tokens whose logits are wanted
};

} // namespace trilobit
