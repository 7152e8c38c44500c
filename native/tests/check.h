// The least that a test needs: numbers that repeat, checks that are counted, and the packed layout
// written out once more, the plain way.
#pragma once

#include "../kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace trilobit::test {

inline constexpr double kUnit = 0x1p-24; // the largest relative error of rounding to float32

inline std::size_t size(int a, int b = 1, int c = 1) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
}

class Check {
  public:
    // What is tested from here on, for the message of a failure.
    void begin(std::string what) { what_ = std::move(what); }

    void that(bool holds, const char *claim) {
        ++count_;
        if (!holds) fail(claim);
    }

    // Bit for bit, so that a NaN equals itself and -0 is not 0.
    template <typename T> void same(const T *got, const T *wanted, std::size_t n) {
        ++count_;
        for (std::size_t i = 0; i < n; ++i)
            if (std::memcmp(got + i, wanted + i, sizeof(T)) != 0)
                return differs(i, static_cast<double>(got[i]), static_cast<double>(wanted[i]), 0);
    }

    void close(double got, double wanted, double tolerance, int element = 0) {
        ++count_;
        if (!(std::abs(got - wanted) <= tolerance)) // a NaN is never close
            differs(size(element), got, wanted, tolerance);
    }

    long count() const { return count_; }
    long failures() const { return failures_; }

  private:
    void differs(std::size_t element, double got, double wanted, double tolerance) {
        char message[128];
        std::snprintf(message, sizeof message, "element %zu is %.9g, not %.9g ± %.2g", element, got,
                      wanted, tolerance);
        fail(message);
    }

    void fail(const char *message) {
        constexpr int kShown = 20;
        if (++failures_ <= kShown) std::printf("FAILED %s: %s\n", what_.c_str(), message);
    }

    std::string what_;
    long count_ = 0, failures_ = 0;
};

// SplitMix64: the same numbers with every compiler and library.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t bits() {
        std::uint64_t x = state_ += 0x9e3779b97f4a7c15;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
        x = (x ^ x >> 27) * 0x94d049bb133111eb;
        return x ^ x >> 31;
    }
    int between(int low, int high) { // both included
        return low + static_cast<int>(bits() % static_cast<std::uint64_t>(high - low + 1));
    }
    float uniform(float low, float high) {
        return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f;
    }
    std::vector<float> floats(std::size_t n, float low, float high) {
        std::vector<float> v(n);
        for (float &x : v) x = uniform(low, high);
        return v;
    }

  private:
    std::uint64_t state_;
};

inline std::string shape_of(int rows, int columns) {
    return std::to_string(rows) + "x" + std::to_string(columns);
}

// Codes -1, 0, 1 [rows, columns] in a layout and order of docs/format.md.
inline std::vector<std::uint8_t> pack(const std::vector<std::int8_t> &codes, int rows, int columns,
                                      Layout layout = Layout::two_bit,
                                      Order order = Order::groups) {
    const Ternary shape{nullptr, nullptr, 0, rows, columns, layout, {}, order};
    const int wide = shape.block_columns(),
              per_line = order == Order::groups ? 0 : shape.line_bytes();
    std::vector<std::uint8_t> packed(shape.bytes());
    for (std::size_t at = 0; at < packed.size(); ++at) {
        const int byte = static_cast<int>(at % 4);
        int line, first; // row (of columns: column), and where in it this byte begins
        if (order == Order::groups) {
            const int block = static_cast<int>(at / kBlockBytes);
            line = block / shape.blocks() * kRows + static_cast<int>(at) % kBlockBytes / 4;
            first = block % shape.blocks() * wide;
        } else {
            line = static_cast<int>(at) / per_line;
            first = static_cast<int>(at) % per_line / 4 * wide;
        }
        int bits = 0, number = 0;
        for (int place = 0; place < places_of(layout); ++place) {
            const int along = first + 4 * place + byte;
            const int row = order == Order::columns ? along : line;
            const int column = order == Order::columns ? line : along;
            const bool inside = row < rows && column < columns;
            const int code = inside ? codes[size(row, columns) + size(column)] + 1 : 1;
            bits |= code << 2 * place;
            number = 3 * number + code;
        }
        const double fraction = 128 + std::nearbyint((number - 121) * 256 / 243.0);
        packed[at] = static_cast<std::uint8_t>(
            layout == Layout::two_bit ? bits : static_cast<int>(fraction));
    }
    return packed;
}

inline double from_f16(std::uint16_t h) {
    const double sign = h & 0x8000 ? -1 : 1;
    const int exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                         : sign * std::ldexp(mantissa + 1024, exponent - 25);
}

// The nearest float16, the even one of two; what is larger than the largest becomes the largest.
inline double nearest_f16(double x) {
    const int exponent = std::max(x == 0 ? -14 : std::ilogb(x), -14);
    const double unit = std::ldexp(1, exponent - 10);
    const double rounded = std::nearbyint(x / unit) * unit;
    return std::abs(rounded) > 65504 ? std::copysign(65504.0, x) : rounded;
}

inline double from_bf16(std::uint16_t h) {
    return double{std::bit_cast<float>(std::uint32_t{h} << 16)};
}

inline double element(const Dense &m, std::size_t i) {
    if (m.type == Float::f32) return double{static_cast<const float *>(m.data)[i]};
    const std::uint16_t half = static_cast<const std::uint16_t *>(m.data)[i];
    return m.type == Float::f16 ? from_f16(half) : from_bf16(half);
}

} // namespace trilobit::test
