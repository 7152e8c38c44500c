// What Python's arguments are to the core, and the exception for those that make no sense.
#pragma once

#include "../isa.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>

namespace trilobit {

namespace nb = nanobind;

using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const std::int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using NewBytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

// ValueError unless the condition holds. The parts of the message are joined only then.
template <typename... Parts> void require(bool condition, const Parts &...message) {
    if (condition) return;
    std::ostringstream text;
    (text << ... << message);
    throw nb::value_error(text.str().c_str());
}

inline void require_threads(int threads) {
    require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
}

inline std::span<const std::int32_t> span_of(const Ids &ids) { return {ids.data(), ids.size()}; }

inline Matrix new_matrix(std::size_t rows, std::size_t columns) {
    float *data = new float[rows * columns]();
    nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<float *>(p); });
    return Matrix(data, {rows, columns}, owner);
}

// The instruction set in use, as chosen for this machine or by TRILOBIT_ISA.
inline const Kernels &kernels_in_use() {
    std::string error;
    const Kernels *kernels = chosen_kernels(&error);
    if (!kernels) throw std::runtime_error(error);
    return *kernels;
}

// Of a name; the one in use if it is empty.
inline const Kernels &kernels_of(const std::string &isa) {
    if (isa.empty()) return kernels_in_use();
    for (const Kernels *k : available_kernels())
        if (isa == k->name) return *k;
    throw nb::value_error(("instruction set '" + isa + "' is not available here").c_str());
}

} // namespace trilobit
