#include "packing.h"

#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

namespace trilobit {
namespace {

// Rows that are taken apart together: whole row groups, and whole words of columns in each layout.
constexpr int kBandRows = 320;
static_assert(kBandRows % kRows == 0 && kBandRows % block_columns_of(Layout::two_bit) == 0 &&
              kBandRows % block_columns_of(Layout::base3) == 0);

using Code = std::uint8_t[kBlockBytes]; // of one place of a block

// Two bits: code 3 is none.
std::uint8_t wrong_two_bit(const std::uint8_t *bytes, std::size_t count) {
    std::uint8_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i)
        wrong = static_cast<std::uint8_t>(wrong | (bytes[i] & bytes[i] >> 1 & 0x55));
    return wrong;
}

// Base 3: a byte lies at most 1/2 beside the middle of a number's share, whose 243 times lies at
// most 121 beside it modulo 256.
std::uint8_t wrong_base3(const std::uint8_t *bytes, std::size_t count) {
    std::uint8_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t beside = static_cast<std::uint8_t>(243 * (bytes[i] - 128) + 121);
        wrong = static_cast<std::uint8_t>(wrong | (beside > 242));
    }
    return wrong;
}

// The codes of a block, place by place.
void take_apart(const std::uint8_t *block, Layout layout, Code *codes) {
    const int places = places_of(layout);
    std::uint8_t bytes[kBlockBytes];
    std::memcpy(bytes, block, kBlockBytes);
    for (int place = 0; place < places; ++place)
        for (int i = 0; i < kBlockBytes; ++i) {
            if (layout == Layout::two_bit) {
                codes[place][i] = bytes[i] >> 2 * place & 3;
                continue;
            }
            const int three = 3 * bytes[i];
            codes[place][i] = static_cast<std::uint8_t>(three >> 8);
            bytes[i] = static_cast<std::uint8_t>(three);
        }
}

void put_together(const Code *codes, Layout layout, std::uint8_t *block) {
    const int places = places_of(layout);
    for (int i = 0; i < kBlockBytes; ++i) {
        int byte = 0;
        if (layout == Layout::two_bit) {
            for (int place = 0; place < places; ++place) byte |= codes[place][i] << 2 * place;
        } else {
            for (int place = 0; place < places; ++place) byte = 3 * byte + codes[place][i];
            byte = (512 * byte + 499) / 486; // the byte nearest to (number + 1/2) * 256 / 243
        }
        block[i] = static_cast<std::uint8_t>(byte);
    }
}

// Words (of four bytes) of one row or column, as codes: place by place, a word after the other.
void take_line(const std::uint8_t *bytes, int words, Layout layout, std::uint8_t *codes) {
    const int places = places_of(layout);
    for (int word = 0; word < words; word += kRows) {
        const int count = std::min(kRows, words - word);
        std::uint8_t block[kBlockBytes];
        std::fill_n(block, kBlockBytes, bytes[4 * word]);
        std::memcpy(block, bytes + 4 * word, static_cast<std::size_t>(4 * count));
        Code of_place[kMostPlaces];
        take_apart(block, layout, of_place);
        for (int i = 0; i < count; ++i)
            for (int place = 0; place < places; ++place, codes += 4)
                std::memcpy(codes, of_place[place] + 4 * i, 4);
    }
}

void put_line(const std::uint8_t *codes, int words, Layout layout, std::uint8_t *bytes) {
    const int places = places_of(layout);
    for (int word = 0; word < words; word += kRows) {
        const int count = std::min(kRows, words - word);
        Code of_place[kMostPlaces] = {};
        for (int i = 0; i < count; ++i)
            for (int place = 0; place < places; ++place, codes += 4)
                std::memcpy(of_place[place] + 4 * i, codes, 4);
        std::uint8_t block[kBlockBytes];
        put_together(of_place, layout, block);
        std::memcpy(bytes + 4 * word, block, static_cast<std::size_t>(4 * count));
    }
}

// One row group as codes [kRows, stride].
void take_group(const Ternary &w, int group, std::uint8_t *codes, std::ptrdiff_t stride) {
    if (w.order == Order::rows) {
        for (int r = 0; r < kRows && group * kRows + r < w.rows; ++r)
            take_line(w.line(group * kRows + r), w.line_bytes() / 4, w.layout, codes + r * stride);
        return;
    }
    const int places = places_of(w.layout);
    const std::uint8_t *block = w.packed + std::ptrdiff_t{group} * w.blocks() * kBlockBytes;
    for (int b = 0; b < w.blocks(); ++b, block += kBlockBytes) {
        Code of_place[kMostPlaces];
        take_apart(block, w.layout, of_place);
        for (int place = 0; place < places; ++place)
            for (int r = 0; r < kRows; ++r)
                std::memcpy(codes + r * stride + (b * places + place) * 4, of_place[place] + 4 * r,
                            4);
    }
}

void put_group(const std::uint8_t *codes, std::ptrdiff_t stride, const Ternary &w, int group,
               std::uint8_t *packed) {
    if (w.order == Order::rows) {
        for (int r = 0; r < kRows && group * kRows + r < w.rows; ++r)
            put_line(codes + r * stride, w.line_bytes() / 4, w.layout,
                     packed + std::ptrdiff_t{group * kRows + r} * w.line_bytes());
        return;
    }
    const int places = places_of(w.layout);
    std::uint8_t *block = packed + std::ptrdiff_t{group} * w.blocks() * kBlockBytes;
    for (int b = 0; b < w.blocks(); ++b, block += kBlockBytes) {
        Code of_place[kMostPlaces];
        for (int r = 0; r < kRows; ++r)
            for (int place = 0; place < places; ++place)
                std::memcpy(of_place[place] + 4 * r, codes + r * stride + (b * places + place) * 4,
                            4);
        put_together(of_place, w.layout, block);
    }
}

// With the padding of columns.
int rows_held(const Ternary &w) { return w.order == Order::columns ? w.line_codes() : w.rows; }

// Rows [band * kBandRows, ...) of a matrix in whatever order, as codes [kBandRows, stride] and
// back.
void take_band(const Ternary &w, int band, std::uint8_t *codes, std::ptrdiff_t stride) {
    const int groups = std::min(kBandRows / kRows, w.groups() - band * kBandRows / kRows);
    if (w.order != Order::columns) {
        for (int g = 0; g < groups; ++g)
            take_group(w, band * kBandRows / kRows + g, codes + g * kRows * stride, stride);
        return;
    }
    const int first = band * kBandRows / w.block_columns() * 4;
    const int bytes = std::min(kBandRows / places_of(w.layout), w.line_bytes() - first);
    std::uint8_t column[kBandRows];
    for (int c = 0; c < w.columns; ++c) {
        take_line(w.line(c) + first, bytes / 4, w.layout, column);
        for (int r = 0; r < bytes * places_of(w.layout); ++r) codes[r * stride + c] = column[r];
    }
}

void put_band(const std::uint8_t *codes, std::ptrdiff_t stride, const Ternary &w, int band,
              std::uint8_t *packed) {
    const int groups = std::min(kBandRows / kRows, w.groups() - band * kBandRows / kRows);
    if (w.order != Order::columns) {
        for (int g = 0; g < groups; ++g)
            put_group(codes + g * kRows * stride, stride, w, band * kBandRows / kRows + g, packed);
        return;
    }
    const int first = band * kBandRows / w.block_columns() * 4;
    const int bytes = std::min(kBandRows / places_of(w.layout), w.line_bytes() - first);
    std::uint8_t column[kBandRows];
    for (int c = 0; c < w.columns; ++c) {
        for (int r = 0; r < kBandRows; ++r) column[r] = codes[r * stride + c];
        put_line(column, bytes / 4, w.layout, packed + std::ptrdiff_t{c} * w.line_bytes() + first);
    }
}

} // namespace

bool codes_are_ternary(const std::uint8_t *packed, std::size_t size, Layout layout, int threads) {
    constexpr std::size_t kChunk = std::size_t{1} << 16;
    const auto wrong = layout == Layout::two_bit ? wrong_two_bit : wrong_base3;
    std::atomic<bool> sound{true};
    Pool pool(threads);
    const Pool::Step step(pool);
    const int chunks = static_cast<int>((size + kChunk - 1) / kChunk);
    pool.split(chunks, static_cast<double>(size) / 8, [&](int begin, int end, int) {
        for (int c = begin; c < end; ++c) {
            const std::size_t from = kChunk * static_cast<std::size_t>(c);
            if (wrong(packed + from, std::min(kChunk, size - from))) sound.store(false);
        }
    });
    return sound.load();
}

void repack(const Ternary &from, const Ternary &to, std::uint8_t *packed, int threads) {
    Pool pool(threads);
    const Pool::Step step(pool);
    const int bands =
        (std::max({from.groups() * kRows, rows_held(from), rows_held(to)}) + kBandRows - 1) /
        kBandRows;
    // Beyond the last column are zero weights, in either layout.
    const int stride = from.columns + kLinePad * kMostPlaces;
    std::vector<std::vector<std::uint8_t>> codes(static_cast<std::size_t>(threads));
    pool.split(bands, static_cast<double>(from.bytes()), [&](int begin, int end, int thread) {
        std::vector<std::uint8_t> &own = codes[static_cast<std::size_t>(thread)];
        for (int band = begin; band < end; ++band) {
            own.assign(static_cast<std::size_t>(kBandRows) * static_cast<std::size_t>(stride), 1);
            take_band(from, band, own.data(), stride);
            put_band(own.data(), stride, to, band, packed);
        }
    });
}

} // namespace trilobit
