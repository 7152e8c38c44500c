// Cosine and sine of an angle, in operations that are the same on every machine: the last bits of a
// C library's are its own.
#pragma once

#include <bit>
#include <cstdint>

namespace trilobit {

struct Turn {
    float cos, sin;
};

// Rounded from a relative error of about 2^-53, for angles below 2^24.
inline Turn turn_of(float angle) {
    // Adding 1.5 · 2^52 leaves no bits for a fraction, and the quarters in the lowest bits.
    constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kRound = 0x1.8p52;
    // π/2 in parts; products of the first two, of 28 bits, with the quarters are exact.
    constexpr double kFirst = 0x1.921fb54p0, kSecond = 0x1.10b461p-30,
                     kThird = 0x1.a62633145c06ep-58;
    const double x = double{angle}, shifted = x * kTwoOverPi + kRound, quarters = shifted - kRound;
    const double r = ((x - quarters * kFirst) - quarters * kSecond) - quarters * kThird;
    const double s = r * r; // both are Taylor's series, up to π/4
    double sin = -1.0 / 1307674368000;
    sin = sin * s + 1.0 / 6227020800;
    sin = sin * s - 1.0 / 39916800;
    sin = sin * s + 1.0 / 362880;
    sin = sin * s - 1.0 / 5040;
    sin = sin * s + 1.0 / 120;
    sin = sin * s - 1.0 / 6;
    sin = r + r * s * sin;
    double cos = 1.0 / 20922789888000;
    cos = cos * s - 1.0 / 87178291200;
    cos = cos * s + 1.0 / 479001600;
    cos = cos * s - 1.0 / 3628800;
    cos = cos * s + 1.0 / 40320;
    cos = cos * s - 1.0 / 720;
    cos = cos * s + 1.0 / 24;
    cos = (1 - 0.5 * s) + s * s * cos;
    const std::uint64_t quarter = std::bit_cast<std::uint64_t>(shifted);
    const double across = quarter & 1 ? sin : cos, up = quarter & 1 ? cos : sin;
    return {static_cast<float>((quarter + 1) & 2 ? -across : across),
            static_cast<float>(quarter & 2 ? -up : up)};
}

} // namespace trilobit
