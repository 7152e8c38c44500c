// Tests the core without Python: every kernel of every instruction set that this processor has,
// then the decoder. For cross-compilers, emulators and sanitizers; the Python tests say more.
//
//     native_tests [ISA...]    test only these; `none` only names what this processor has

#include "check.h"
#include "tests.h"

#include "../isa.h"

int main(int argc, char **argv) {
    using namespace trilobit;
    test::Check check;
    test::test_allowed(check);
    test::test_packing(check);
#if !defined(__wasi__) // which has no threads
    test::test_pool(check);
#endif
    std::string available, tested;
    for (const Kernels *k : available_kernels()) {
        available.append(" ").append(k->name);
        bool wanted = argc == 1;
        for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], k->name) == 0;
        if (!wanted) continue;
        for (const auto part :
             {test::test_ternary, test::test_sparse, test::test_groups, test::test_float,
              test::test_attention, test::test_screen, test::test_limits, test::test_decoder})
            part(*k, check);
#if !defined(__wasi__)
        test::test_rows(*k, check);
#endif
        tested.append(" ").append(k->name);
    }
    std::printf("%ld checks, %ld failed\n", check.count(), check.failures());
    std::printf("available:%s\ntested:%s\n", available.c_str(), tested.c_str());
    return check.failures() == 0 ? 0 : 1;
}
