#include "isa.h"

#include <cstdlib>

#if defined(__x86_64__) || defined(_M_X64)
#define TRILOBIT_X86 1
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define TRILOBIT_ARM64 1
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#elif defined(__wasm__)
#define TRILOBIT_WASM 1
#endif

namespace trilobit {

extern const Kernels k_scalar;
#if TRILOBIT_X86
extern const Kernels k_avx2, k_avxvnni, k_avx512vnni;
#elif TRILOBIT_ARM64
extern const Kernels k_neon;
#elif TRILOBIT_WASM
extern const Kernels k_simd128, k_relaxed;
bool relaxed_is_exact(); // with k_relaxed
#endif

namespace {

#if TRILOBIT_X86
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r{};
#if defined(_MSC_VER)
    int v[4];
    __cpuid(v, 0);
    if (static_cast<unsigned>(v[0]) < leaf) return r;
    __cpuidex(v, static_cast<int>(leaf), static_cast<int>(subleaf));
    r = {static_cast<unsigned>(v[0]), static_cast<unsigned>(v[1]), static_cast<unsigned>(v[2]),
         static_cast<unsigned>(v[3])};
#else
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
#endif
    return r;
}

// Register state that the operating system saves on a context switch (XCR0).
unsigned saved_state() {
    if (!(cpuid(1, 0).c >> 27 & 1)) return 0; // OSXSAVE
#if defined(_MSC_VER)
    return static_cast<unsigned>(_xgetbv(0));
#else
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

void add_x86(std::vector<const Kernels *> &found) {
    const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1);
    const unsigned state = saved_state();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
    const bool fma = one.c >> 12 & 1, f16c = one.c >> 29 & 1, avx2 = seven.b >> 5 & 1;
    if (!(ymm && fma && f16c && avx2)) return;
    found.push_back(&k_avx2);
    if (seven.a >= 1 && (seven1.a >> 4 & 1)) found.push_back(&k_avxvnni);
    const bool f = seven.b >> 16 & 1, dq = seven.b >> 17 & 1, bw = seven.b >> 30 & 1,
               vl = seven.b >> 31 & 1, vnni = seven.c >> 11 & 1;
    if (zmm && f && dq && bw && vl && vnni) found.push_back(&k_avx512vnni);
}
#endif

std::vector<const Kernels *> detect() {
    std::vector<const Kernels *> found{&k_scalar};
#if TRILOBIT_X86
    add_x86(found);
#elif TRILOBIT_ARM64 && defined(__linux__)
    if (getauxval(AT_HWCAP) >> 20 & 1) found.push_back(&k_neon); // HWCAP_ASIMDDP
#elif TRILOBIT_ARM64
    found.push_back(&k_neon); // every Apple and Windows arm64 machine has dot products
#elif TRILOBIT_WASM
    // An engine refuses a module with instructions that it lacks, so there is one without these.
    found.push_back(&k_simd128);
#if TRILOBIT_RELAXED_SIMD
    if (relaxed_is_exact()) found.push_back(&k_relaxed);
#endif
#endif
    return found;
}

} // namespace

const std::vector<const Kernels *> &available_kernels() {
    static const std::vector<const Kernels *> found = detect();
    return found;
}

const Kernels *chosen_kernels(std::string *error) {
    const auto &found = available_kernels();
    const char *wanted = std::getenv("TRILOBIT_ISA");
    if (!wanted || !*wanted) return found.back();
    std::string names;
    for (const Kernels *k : found) {
        if (std::string(wanted) == k->name) return k;
        names += (names.empty() ? "" : ", ") + std::string(k->name);
    }
    *error = "TRILOBIT_ISA=" + std::string(wanted) + " is not available here; available: " + names;
    return nullptr;
}

} // namespace trilobit
