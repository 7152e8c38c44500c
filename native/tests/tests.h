// The parts of the test program, named as what they test. Most run on one instruction set, against
// plain loops, in buffers exactly as large as kernels.h promises: a sanitizer sees a byte too many.
#pragma once

#include "../kernels.h"

namespace trilobit::test {

class Check;

void test_allowed(Check &check);
void test_packing(Check &check);
void test_pool(Check &check);
void test_ternary(const Kernels &kernels, Check &check);
void test_sparse(const Kernels &kernels, Check &check);
void test_groups(const Kernels &kernels, Check &check);
void test_float(const Kernels &kernels, Check &check);
void test_attention(const Kernels &kernels, Check &check);
void test_screen(const Kernels &kernels, Check &check);
void test_rows(const Kernels &kernels, Check &check);
void test_limits(const Kernels &kernels, Check &check);
void test_decoder(const Kernels &kernels, Check &check);

} // namespace trilobit::test
