// Instruction sets and single kernels, for the tests.

#include "../kernels.h"
#include "../memory.h"
#include "../pool.h"
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

namespace trilobit {
namespace {

Matrix kernel_linear(const std::string &isa, const Bytes &packed, int rows, int columns,
                     const Codes &x, int threads, Layout layout, Order order) {
    const Kernels &k = kernels_of(isa);
    require_threads(threads);
    const float one = 1;
    const Ternary w{packed.data(), &one, 0, rows, columns, layout, {}, order};
    require(rows > 0 && columns > 0 && packed.size() == w.bytes(),
            "packed does not have the size of [rows, columns]");
    require(x.shape(1) == static_cast<std::size_t>(columns), "x must be [tokens, columns]");
    const int tokens = static_cast<int>(x.shape(0)), padded = padded_columns(columns);
    Array<float> scales(static_cast<std::size_t>(tokens));
    Array<std::int8_t> codes(static_cast<std::size_t>(tokens) * padded);
    Array<std::int32_t> sums(static_cast<std::size_t>(tokens));
    const Activations a{codes.data(), scales.data(), sums.data(),
                        tokens,       padded,        k.tile_tokens(tokens)};
    for (int t = 0; t < tokens; ++t) {
        scales[t] = 1;
        for (int i = 0; i < columns; ++i) {
            const std::int8_t code = x.data()[std::ptrdiff_t{t} * columns + i];
            a.first(t)[i / 4 * 4 * a.tokens_beside(t) + i % 4] = code;
            sums[t] += code;
        }
    }
    Matrix out = new_matrix(static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows));
    Pool pool(threads);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    pool.split(w.groups(), Pool::kLong, [&](int begin, int end, int thread) {
        k.linear(w, a, begin, end, out.data(), rows, false,
                 scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
    });
    return out;
}

Matrix kernel_linear_groups(const std::string &isa, const Bytes &packed, const Floats &scales,
                            int rows, int columns, const Floats &x, int threads) {
    const Kernels &k = kernels_of(isa);
    require_threads(threads);
    require(rows > 0 && columns > 0, "rows and columns must be positive");
    Ternary w{packed.data(), nullptr, 0, rows, columns};
    w.group_scales = {scales.data(), Float::f32, rows, w.scale_groups()};
    require(packed.size() == w.bytes() &&
                scales.size() == static_cast<std::size_t>(rows) * w.scale_groups(),
            "packed or scales do not have the size of [rows, columns]");
    require(x.ndim() == 2 && x.shape(1) == static_cast<std::size_t>(columns),
            "x must be [tokens, columns]");
    const int tokens = static_cast<int>(x.shape(0));
    const std::size_t groups = static_cast<std::size_t>(tokens) * w.scale_groups();
    Array<std::int8_t> codes(2 * groups * kScaleColumns);
    Array<float> code_scales(groups);
    Array<std::int32_t> sums(groups);
    const WideActivations a{{codes.data(), code_scales.data(), sums.data(), 2 * tokens,
                             w.scale_groups() * kScaleColumns, k.wide_tile_tokens(2 * tokens)}};
    for (int t = 0; t < tokens; ++t)
        k.quantise_groups(x.data() + std::ptrdiff_t{t} * columns, columns, a, t);
    Matrix out = new_matrix(static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows));
    Pool pool(threads);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    pool.split(w.groups(), Pool::kLong, [&](int begin, int end, int thread) {
        k.linear_groups(w, a, begin, end, out.data(), rows, false,
                        scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
    });
    return out;
}

nb::tuple kernel_norm_quantise(const std::string &isa, const Floats &x, const Floats &gain,
                               float eps) {
    const Kernels &k = kernels_of(isa);
    require(x.size() == gain.size() && x.size() > 0, "x and gain must have the same length");
    const int n = static_cast<int>(x.size()), size = padded_columns(n);
    Array<float> padded(static_cast<std::size_t>(size)), gains(static_cast<std::size_t>(size));
    std::copy_n(x.data(), n, padded.data());
    std::copy_n(gain.data(), n, gains.data());
    Array<std::int8_t> codes(static_cast<std::size_t>(size));
    float scale = 0;
    std::int32_t sum = 0;
    k.norm_quantise(padded.data(), gains.data(), n, eps, {codes.data(), &scale, &sum, 1, size, 1},
                    0);
    return nb::make_tuple(std::vector<int>(codes.data(), codes.data() + n), scale, sum);
}

} // namespace

void bind_kernels(nb::module_ &m) {
    using namespace nb::literals;
    nb::enum_<Layout>(m, "Layout", "How ternary weights lie in bytes.")
        .value("two_bit", Layout::two_bit)
        .value("base3", Layout::base3);
    nb::enum_<Order>(m, "Order", "How the bytes of a ternary matrix follow each other.")
        .value("groups", Order::groups)
        .value("rows", Order::rows)
        .value("columns", Order::columns);
    m.def(
        "isa", [] { return std::string(kernels_in_use().name); },
        "The instruction set in use; TRILOBIT_ISA forces one.");
    m.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (const Kernels *k : available_kernels()) names.emplace_back(k->name);
            return names;
        },
        "Instruction sets that this processor can run, the fastest last.");
    m.def("kernel_linear", &kernel_linear, "isa"_a, "packed"_a, "rows"_a, "columns"_a, "x"_a,
          "threads"_a = 1, "layout"_a = Layout::two_bit, "order"_a = Order::groups,
          "Integer products [tokens, rows] of one kernel, as float32.");
    m.def("kernel_linear_groups", &kernel_linear_groups, "isa"_a, "packed"_a, "scales"_a, "rows"_a,
          "columns"_a, "x"_a, "threads"_a = 1,
          "Products [tokens, rows] of one kernel with scales [rows, blocks], of float32 x.");
    m.def("kernel_norm_quantise", &kernel_norm_quantise, "isa"_a, "x"_a, "gain"_a, "eps"_a,
          "(codes, scale, sum of codes) of one token.");
}

} // namespace trilobit
