// Where no vector is wider than eight floats, these are as many as attention takes together.

using Wide = F8;
constexpr int kWide = 8;        // lanes
constexpr int kTileQueries = 4; // whose sums fit into the registers, two vectors each

inline Wide load_wide(const float *p) { return load8(p); }
inline Wide load_wide_f16(const std::uint16_t *p) { return load_f16(p); }
inline Wide load_wide_i8(const std::int8_t *p) { return load_i8(p); }
inline void store_wide(float *p, Wide a) { store8(p, a); }
inline Wide all_wide(float a) { return all8(a); }
