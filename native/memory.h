// Zeroed, aligned arrays whose pages are only taken when they are first used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if __has_include(<sys/mman.h>) && !defined(__wasi__)
#include <sys/mman.h>
#endif

namespace trilobit {

template <typename T> class Array {
  public:
    Array() = default;
    explicit Array(std::size_t size) : memory_(std::calloc(size * sizeof(T) + kAlign, 1)) {
        if (!memory_) run_out();
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
        data_ = reinterpret_cast<T *>((address + kAlign - 1) / kAlign * kAlign);
        size_ = size;
        prefer_large_pages(address, size * sizeof(T));
    }

    T *data() const { return data_; }
    std::size_t size() const { return size_; }
    T &operator[](std::ptrdiff_t i) const { return data_[i]; }

  private:
    static constexpr std::size_t kAlign = 64;             // a cache line, and the widest vector
    static constexpr std::uintptr_t kPage = 1 << 16;      // a multiple of every system's
    static constexpr std::uintptr_t kLargePage = 1 << 21; // of x86-64, and often of Arm

    [[noreturn]] static void run_out() {
#if defined(__cpp_exceptions)
        throw std::bad_alloc();
#else
        std::abort(); // WebAssembly's has none
#endif
    }

    // Rows of a batch's outputs, and blocks of a long context, lie pages apart: looking those up
    // took 2 to 6 % of a step.
    static void prefer_large_pages([[maybe_unused]] std::uintptr_t address,
                                   [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
        if (bytes < 2 * kLargePage) return; // may not hold one
        const std::uintptr_t begin = (address + kPage - 1) / kPage * kPage,
                             end = (address + bytes) / kPage * kPage;
        // A system that has none says so, and nothing is lost.
        (void)madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
    }

    struct Free {
        void operator()(void *p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> memory_;
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace trilobit
