// What the machine can do at most, and how near single kernels come to it.

#include "../limits.h"
#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

namespace trilobit {
namespace {

void require_repeats(int threads, int repeats) {
    require_threads(threads);
    require(repeats >= 1, "repeats must be positive");
}

double read_rate(int threads, int repeats, const std::string &isa) {
    require_repeats(threads, repeats);
    const Kernels &k = kernels_of(isa);
    const nb::gil_scoped_release release;
    return dram_read_gb_per_s(k, threads, repeats);
}

double multiply_rate(int threads, int repeats, const std::string &isa) {
    require_repeats(threads, repeats);
    const Kernels &k = kernels_of(isa);
    const nb::gil_scoped_release release;
    return int8_gmac_per_s(k, threads, repeats);
}

void require_sizes(int rows, int columns, int tokens, int threads, int repeats) {
    require_repeats(threads, repeats);
    require(rows >= 1 && columns >= 1 && tokens >= 1, "rows, columns and tokens must be positive");
    require(rows <= 1 << 20 && columns <= 1 << 16 && tokens <= 1 << 12,
            "rows, columns or tokens are beyond 2^20, 2^16 or 2^12");
}

std::vector<double> seconds_of_linear(const std::string &isa, int rows, int columns, int tokens,
                                      int threads, int repeats, Layout layout, Order order) {
    const Kernels &k = kernels_of(isa);
    require_sizes(rows, columns, tokens, threads, repeats);
    const nb::gil_scoped_release release;
    return linear_seconds(k, {nullptr, nullptr, 0, rows, columns, layout, {}, order}, tokens,
                          threads, repeats);
}

std::vector<double> seconds_of_sparse(const std::string &isa, int rows, int columns, Order order,
                                      double share, int tokens, int threads, int repeats,
                                      Layout layout) {
    const Kernels &k = kernels_of(isa);
    require_sizes(rows, columns, tokens, threads, repeats);
    require(order != Order::groups, "of groups all is read");
    require(share >= 0 && share <= 1, "share must be 0 to 1");
    const nb::gil_scoped_release release;
    return sparse_seconds(k, {nullptr, nullptr, 0, rows, columns, layout, {}, order}, share, tokens,
                          threads, repeats);
}

std::vector<double> seconds_of_screen(const std::string &isa, int rows, int columns, int tokens,
                                      int threads, int repeats) {
    const Kernels &k = kernels_of(isa);
    require_sizes(rows, columns, tokens, threads, repeats);
    const nb::gil_scoped_release release;
    return screen_seconds(k, rows, columns, tokens, threads, repeats);
}

} // namespace

void bind_limits(nb::module_ &m) {
    using namespace nb::literals;
    m.def("dram_read_gb_per_s", &read_rate, "threads"_a, "repeats"_a = 7, "isa"_a = "",
          "Median rate of reading 512 MB once, in GB/s (10^9).");
    m.def("int8_gmac_per_s", &multiply_rate, "threads"_a, "repeats"_a = 7, "isa"_a = "",
          "Median rate of u8 × s8 multiply-adds from registers, in 10^9 a second.");
    m.def("linear_seconds", &seconds_of_linear, "isa"_a, "rows"_a, "columns"_a, "tokens"_a,
          "threads"_a = 1, "repeats"_a = 7, "layout"_a = Layout::two_bit, "order"_a = Order::groups,
          "Seconds of one product with a ternary matrix that comes from memory, `repeats` times.");
    m.def("sparse_seconds", &seconds_of_sparse, "isa"_a, "rows"_a, "columns"_a, "order"_a,
          "share"_a, "tokens"_a, "threads"_a = 1, "repeats"_a = 7, "layout"_a = Layout::two_bit,
          "The same of a matrix in rows or columns of which that share counts for a token, if no "
          "other is read.");
    m.def("screen_seconds", &seconds_of_screen, "isa"_a, "rows"_a, "columns"_a, "tokens"_a,
          "threads"_a = 1, "repeats"_a = 7,
          "Seconds of one pass over the coarse plane of a screen that comes from memory, `repeats` "
          "times.");
}

} // namespace trilobit
