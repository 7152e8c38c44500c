// Every kernel, compiled once for each instruction set inside an anonymous namespace. Before this
// file come the intrinsics' headers, then float8_*.h and int8_*.h of the instruction set. Nothing
// of the standard library may be used here: an inline function compiled for a wider instruction
// set would leak into code that runs on every processor.

#if defined(__clang__)
#define TRILOBIT_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define TRILOBIT_UNROLL _Pragma("GCC unroll 16")
#else
#define TRILOBIT_UNROLL
#endif
// A tile of its own function has all registers to itself.
#if defined(__GNUC__)
#define TRILOBIT_NOINLINE __attribute__((noinline))
#else
#define TRILOBIT_NOINLINE __declspec(noinline)
#endif
// The measuring loop must not be folded: pretend that memory changed.
#if defined(__GNUC__)
#define TRILOBIT_CLOBBER __asm__ volatile("" ::: "memory");
#else
#define TRILOBIT_CLOBBER _ReadWriteBarrier();
#endif

#if defined(__GNUC__)
inline void prefetch(const void *p) { __builtin_prefetch(p); }
inline void prefetch_to_l2(const void *p) { __builtin_prefetch(p, 0, 2); }
#elif defined(_M_X64)
inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
inline void prefetch_to_l2(const void *p) {
    _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1);
}
#else
inline void prefetch(const void *) {}
inline void prefetch_to_l2(const void *) {}
#endif

#include "ternary.inl"

#include "sparse.inl"

#include "float.inl"

#include "groups.inl"

#include "attention.inl"

#include "screen.inl"

#include "limits.inl"

constexpr Kernels table(const char *name, double products_per_ns) {
    return {name,
            linear,
            linear_groups,
            gated_rows,
            spread,
            add_columns,
            settle,
            tile_tokens,
            wide_tile_tokens,
            norm_quantise,
            quantise_groups,
            norm,
            gate,
            rope,
            embed,
            embed_groups,
            dense,
            store_key,
            store_value,
            attend,
            merge,
            finish,
            rotate,
            coarse,
            fine,
            largest,
            reaching,
            gumbel,
            read,
            multiply,
            products_per_ns,
            {Int8::kMostly, Int8::kMostlyBaseThree}};
}
