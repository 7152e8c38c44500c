#include "packing.h"

#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace trilobit {
namespace {

// Places that fill whole blocks in both layouts: 5 in two bits, 4 in base 3.
constexpr int kTogether = places_of(Layout::two_bit) * places_of(Layout::base3);

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

void repack_group(const std::uint8_t *from, Layout from_layout, int from_blocks, std::uint8_t *to,
                  Layout to_layout, int to_blocks) {
    const int from_places = places_of(from_layout), to_places = places_of(to_layout);
    const int from_step = kTogether / from_places, to_step = kTogether / to_places;
    for (int step = 0; step * to_step < to_blocks; ++step) {
        Code codes[kTogether];
        std::memset(codes, 1, sizeof codes); // beyond the last block are zero weights
        for (int i = 0, b = step * from_step; i < from_step && b < from_blocks; ++i, ++b)
            take_apart(from + std::ptrdiff_t{b} * kBlockBytes, from_layout,
                       codes + i * from_places);
        for (int i = 0, b = step * to_step; i < to_step && b < to_blocks; ++i, ++b)
            put_together(codes + i * to_places, to_layout, to + std::ptrdiff_t{b} * kBlockBytes);
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
    pool.split(from.groups(), static_cast<double>(from.bytes()), [&](int begin, int end, int) {
        for (int g = begin; g < end; ++g)
            repack_group(from.packed + std::ptrdiff_t{g} * from.blocks() * kBlockBytes, from.layout,
                         from.blocks(), packed + std::ptrdiff_t{g} * to.blocks() * kBlockBytes,
                         to.layout, to.blocks());
    });
}

} // namespace trilobit
