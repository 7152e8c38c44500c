// Whether packed weights are sound, and the same weights in another layout.

#include "../packing.h"
#include "bindings.h"

#include <cstdint>

namespace trilobit {
namespace {

bool check_codes(const Bytes &packed, int threads, Layout layout) {
    require_threads(threads);
    const nb::gil_scoped_release release;
    return codes_are_ternary(packed.data(), packed.size(), layout, threads);
}

NewBytes repacked(const Bytes &packed, int rows, int columns, Layout layout, Layout new_layout,
                  Order order, Order new_order, int threads) {
    require_threads(threads);
    const Ternary from{packed.data(), nullptr, 0, rows, columns, layout, {}, order};
    const Ternary to{nullptr, nullptr, 0, rows, columns, new_layout, {}, new_order};
    require(rows > 0 && columns > 0 && packed.size() == from.bytes(),
            "packed does not have the size of [rows, columns]");
    auto *data = new std::uint8_t[to.bytes()];
    const nb::capsule owner(data,
                            [](void *p) noexcept { delete[] static_cast<std::uint8_t *>(p); });
    {
        const nb::gil_scoped_release release;
        repack(from, to, data, threads);
    }
    return NewBytes(data, {to.bytes()}, owner);
}

} // namespace

void bind_packing(nb::module_ &m) {
    using namespace nb::literals;
    m.def("check_codes", &check_codes, "packed"_a, "threads"_a = 1, "layout"_a = Layout::two_bit,
          "True when every packed byte stands for ternary weights.");
    m.def("repacked", &repacked, "packed"_a, "rows"_a, "columns"_a, "layout"_a, "new_layout"_a,
          "order"_a = Order::groups, "new_order"_a = Order::groups, "threads"_a = 1,
          "uint8: a matrix [rows, columns] in another layout.");
}

} // namespace trilobit
