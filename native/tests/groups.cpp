// Ternary matrices with a scale for every block, and the 16-bit activations that they meet.

#include "check.h"
#include "tests.h"

#include "../memory.h"

#include <algorithm>

namespace trilobit::test {
namespace {

struct Tokens {
    std::vector<std::int8_t> codes;
    std::vector<float> scales;
    std::vector<std::int32_t> sums;
    WideActivations wide;

    Tokens(const Kernels &k, int count, int columns, const std::vector<float> &x)
        : codes(size(count, 2, round_up(columns, kScaleColumns)), 99),
          scales(size(count, round_up(columns, kScaleColumns) / kScaleColumns)),
          sums(scales.size()),
          wide{{codes.data(), scales.data(), sums.data(), 2 * count,
                round_up(columns, kScaleColumns), k.wide_tile_tokens(2 * count)}} {
        for (int t = 0; t < count; ++t) k.quantise_groups(x.data() + t * columns, columns, wide, t);
    }

    int code(int token, int column) const {
        const int first = 2 * token / wide.bytes.tile * wide.bytes.tile;
        const int together = std::min(wide.bytes.tile, wide.bytes.tokens - first);
        const std::size_t at = size(first, wide.bytes.columns) +
                               size((column / 4 * together + 2 * token - first) * 4 + column % 4);
        return 256 * codes[at] + codes[at + 4];
    }
};

void quantise(const Kernels &k, Check &check) {
    Random random(21);
    for (const int columns : {1, 60, 128, 300, 2560}) {
        check.begin(std::string(k.name) + " quantise_groups " + std::to_string(columns));
        std::vector<float> x = random.floats(size(columns), -3, 3);
        x[0] = 1000;                                               // in the first block only
        if (columns > 256) std::fill_n(x.data() + 128, 128, 0.0f); // nothing in the second
        const Tokens tokens(k, 1, columns, x);
        for (int b = 0; b < tokens.wide.groups(); ++b) {
            double largest = 0;
            std::int32_t sum = 0;
            const int end = std::min((b + 1) * kScaleColumns, columns);
            for (int i = b * kScaleColumns; i < end; ++i)
                largest = std::max(largest, std::abs(double{x[size(i)]}));
            for (int i = b * kScaleColumns; i < (b + 1) * kScaleColumns; ++i) {
                sum += tokens.code(0, i);
                const double wanted = i < end && largest > 0 ? x[size(i)] * 32512 / largest : 0;
                // Half a step, and two roundings of what is up to 32512 steps
                check.close(tokens.code(0, i), wanted, 0.5 + 32512 * 2 * kUnit, i);
            }
            check.that(sum == tokens.sums[size(b)], "the sum is that of the codes");
            check.close(tokens.scales[size(b)], largest / 32512, 2 * kUnit * largest / 32512, b);
        }
    }
}

// The scales in each type of float; bits of bfloat16 and float16 are made by hand.
struct Scales {
    std::vector<std::uint16_t> halves;
    std::vector<float> floats;
    Dense dense;

    Scales(Random &random, Float type, int rows, int blocks) {
        floats = random.floats(size(rows, blocks), 0.01f, 1);
        for (float &scale : floats) {
            const std::uint16_t bf16 =
                static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(scale) >> 16);
            const std::uint16_t f16 = static_cast<std::uint16_t>(random.between(0x2000, 0x3c00));
            if (type == Float::f32) break;
            halves.push_back(type == Float::bf16 ? bf16 : f16);
            scale = static_cast<float>(type == Float::bf16 ? from_bf16(bf16) : from_f16(f16));
        }
        const void *data =
            halves.empty() ? static_cast<const void *>(floats.data()) : halves.data();
        dense = {data, type, rows, blocks};
    }
};

void linear(const Kernels &k, Check &check) {
    constexpr int kShapes[][2] = {{1, 1}, {3, 31}, {16, 128}, {17, 130}, {53, 2561}};
    constexpr int kCounts[] = {1, 2, 3, 4, 5, 6, 7, 131};
    Random random(22);
    Array<unsigned char> scratch(kScratchBytes);
    for (const auto [rows, columns] : kShapes)
        for (const Float type : {Float::f32, Float::f16, Float::bf16}) {
            std::vector<std::int8_t> codes(size(rows, columns));
            for (std::int8_t &c : codes) c = static_cast<std::int8_t>(random.between(-1, 1));
            const std::vector<std::uint8_t> packed = pack(codes, rows, columns);
            const int blocks = round_up(columns, kScaleColumns) / kScaleColumns;
            const Scales scales(random, type, rows, blocks);
            const Ternary w{packed.data(), nullptr,         0,           rows,
                            columns,       Layout::two_bit, scales.dense};
            for (int r = 0; r < rows; ++r) {
                std::vector<float> row(size(columns));
                k.embed_groups(w, r, row.data());
                for (int i = 0; i < columns; ++i)
                    check.that(row[size(i)] == codes[size(r, columns) + size(i)] *
                                                   scales.floats[size(r, blocks) + size(i / 128)],
                               "an embedding is a row of codes times their scales");
            }
            for (const int count : kCounts) {
                check.begin(std::string(k.name) + " linear_groups " + shape_of(rows, columns) +
                            ", " + std::to_string(count) + " tokens");
                Tokens x(k, count, columns, random.floats(size(count, columns), -2, 2));
                const int stride = rows + 3, begin = w.groups() / 4;
                const int end = (3 * w.groups() + 3) / 4;
                const std::vector<float> before = random.floats(size(count, stride), -9, 9);
                std::vector<float> written = before, added = before, wanted = before, sums = before;
                for (int t = 0; t < count; ++t)
                    for (int r = begin * kRows; r < std::min(end * kRows, rows); ++r) {
                        float y = 0;
                        for (int b = 0; b < blocks; ++b) {
                            std::int32_t dot = 0;
                            for (int i = b * 128; i < std::min(columns, (b + 1) * 128); ++i)
                                dot += codes[size(r, columns) + size(i)] * x.code(t, i);
                            y += static_cast<float>(dot) *
                                 (scales.floats[size(r, blocks) + size(b)] *
                                  x.scales[size(t, blocks) + size(b)]);
                        }
                        wanted[size(t, stride) + size(r)] = y;
                        sums[size(t, stride) + size(r)] += y;
                    }
                k.linear_groups(w, x.wide, begin, end, written.data(), stride, false,
                                scratch.data());
                check.same(written.data(), wanted.data(), wanted.size());
                k.linear_groups(w, x.wide, begin, end, added.data(), stride, true, scratch.data());
                check.same(added.data(), sums.data(), sums.size());
            }
        }
}

} // namespace

void test_groups(const Kernels &k, Check &check) {
    quantise(k, check);
    linear(k, check);
}

} // namespace trilobit::test
