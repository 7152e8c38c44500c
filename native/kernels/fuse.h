// Rounded once, as the instruction is. A product of floats is exact as a double. Rounding the sum
// to a double first shows only where that comes to lie in the middle between two floats, or below
// the normal ones, where the middles are elsewhere.
inline float fuse(float a, float b, float c) {
    const double product = double{a} * b, sum = product + c;
    // What the sum lacks, exactly (Knuth's two-sum).
    const double part = sum - product, missed = (product - (sum - part)) + (c - part);
    std::uint64_t bits;
    std::memcpy(&bits, &sum, 8);
    // Rounded to odd instead, a double is never a middle by mistake (Boldo, Melquiond 2008).
    if ((missed > 0 || missed < 0) && !(bits & 1)) bits += (missed > 0) == (sum > 0) ? 1 : -1;
    double odd;
    std::memcpy(&odd, &bits, 8);
    return static_cast<float>(odd);
}
