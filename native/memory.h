// Zeroed, aligned arrays whose pages are only taken when they are first used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace trilobit {

template <typename T> class Array {
  public:
    Array() = default;
    explicit Array(std::size_t size) : memory_(std::calloc(size * sizeof(T) + kAlign, 1)) {
        if (!memory_) throw std::bad_alloc();
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
        data_ = reinterpret_cast<T *>((address + kAlign - 1) / kAlign * kAlign);
        size_ = size;
    }

    T *data() const { return data_; }
    std::size_t size() const { return size_; }
    T &operator[](std::ptrdiff_t i) const { return data_[i]; }

  private:
    static constexpr std::size_t kAlign = 64; // a cache line, and the widest vector
    struct Free {
        void operator()(void *p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> memory_;
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace trilobit
