#include "pool.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace trilobit {
namespace {

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    __asm__ volatile("yield");
#endif
}

// After some 20 µs of spinning somebody else probably needs the core.
constexpr int kSpins = 500;

void spin(int &spins) {
    pause();
    if (++spins > kSpins) std::this_thread::yield();
}

long current_process() {
#if __has_include(<unistd.h>)
    return getpid();
#else
    return 0; // no fork either
#endif
}

} // namespace

Pool::Pool(int threads) { start(threads); }

void Pool::start(int threads) {
    process_ = current_process();
    const std::uint32_t round = round_.load();
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i, round] { work(i, round); });
}

// A fork takes along only the thread that forks: in the child nobody works, and the handles of the
// parent's threads can be neither joined nor destroyed.
void Pool::revive() {
    if (!forked()) return;
    const int n = threads();
    new std::vector<std::thread>(std::move(workers_));
    workers_.clear();
    running_.store(0);
    start(n);
}

bool Pool::forked() const { return process_ != current_process(); }

Pool::~Pool() {
    if (forked()) {
        new std::vector<std::thread>(std::move(workers_));
        return;
    }
    stopping_.store(true);
    round_.fetch_add(1);
    round_.notify_all();
    for (std::thread &worker : workers_) worker.join();
}

void Pool::run(Task task, void *context) {
    if (!workers_.empty()) {
        task_ = task;
        context_ = context;
        running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }
    task(context, 0);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0;) spin(spins);
}

void Pool::work(int thread, std::uint32_t seen) {
    for (;;) {
        for (int spins = 0; round_.load(std::memory_order_acquire) == seen;) {
            if (awake_.load(std::memory_order_relaxed))
                spin(spins);
            else
                round_.wait(seen);
        }
        ++seen;
        if (stopping_.load()) return;
        task_(context_, thread);
        running_.fetch_sub(1, std::memory_order_release);
    }
}

} // namespace trilobit
