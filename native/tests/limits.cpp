// The machine's limits.

#include "check.h"
#include "tests.h"

#include "../limits.h"

#include <algorithm>

namespace trilobit::test {
namespace {

void limits(const Kernels &k, Check &check) {
    check.begin(std::string(k.name) + " limits");
    const std::vector<float> ones(1024, 1.0f), zeros(1024);
    check.that(k.read(ones.data(), 4096) == 1, "ones are read");
    check.that(k.read(zeros.data(), 4096) == 0, "zeros are read");
    std::int32_t sink[kRows] = {};
    const int products = k.multiply(1, sink);
    check.that(products > 0 && products % kRows == 0, "products are counted");
    check.that(sink[0] != 0 &&
                   std::all_of(sink, sink + kRows, [&](std::int32_t s) { return s == sink[0]; }),
               "rows of equal codes have equal sums");
}

} // namespace

void test_limits(const Kernels &k, Check &check) { limits(k, check); }

} // namespace trilobit::test
