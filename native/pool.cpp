#include "pool.h"

#include <chrono>
#include <map>
#include <mutex>

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

// Some times what falling asleep and being woken takes. What the caller does alone between the
// parts of a step (attention over a few hundred keys, say) is shorter; with 30 µs here, decoding
// was 9 % slower. What takes longer may need this core.
constexpr std::chrono::microseconds kSpin{150};

// Whether it is so soon. Nothing here yields: a busy neighbour would keep the core for
// milliseconds.
template <typename F> bool spin_until(F &&is_so) {
    if (is_so()) return true;
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 16; ++i) {
            if (is_so()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

long current_process() {
#if __has_include(<unistd.h>)
    return getpid();
#else
    return 1; // no fork either
#endif
}

} // namespace

std::shared_ptr<Workers> Workers::shared(int count) {
    // Never destroyed: engines may outlive what is destroyed at the end of a process.
    static std::mutex &mutex = *new std::mutex;
    static auto &all = *new std::map<int, std::weak_ptr<Workers>>;
    const std::lock_guard lock(mutex);
    std::shared_ptr<Workers> workers = all[count].lock();
    if (!workers) all[count] = workers = std::make_shared<Workers>(count);
    return workers;
}

Workers::Workers(int count) : count_(count), process_(current_process()) { start(); }

void Workers::start() {
    const std::uint32_t round = round_.load();
    for (int i = 1; i <= count_; ++i) threads_.emplace_back([this, i, round] { work(i, round); });
}

// The handles of a parent's threads can be neither joined nor destroyed.
void Workers::leave_behind() {
    new std::vector<std::thread>(std::move(threads_));
    threads_.clear();
}

void Workers::revive() {
    const long process = current_process();
    long seen = process_.load(std::memory_order_acquire);
    if (seen == process) return;
    // Several threads of the child may come here at once: one does it, the others wait.
    if (seen != -process && process_.compare_exchange_strong(seen, -process)) {
        leave_behind();
        taken_.store(false);
        awaited_.store(false);
        asleep_.store(0);
        left_.store(0);
        start();
        process_.store(process, std::memory_order_release);
        return;
    }
    while (process_.load(std::memory_order_acquire) != process) std::this_thread::yield();
}

Workers::~Workers() {
    if (process_.load() != current_process()) {
        leave_behind();
        return;
    }
    stopping_.store(true);
    round_.fetch_add(1);
    round_.notify_all();
    for (std::thread &thread : threads_) thread.join();
}

bool Workers::run(int pieces, Task task, void *context) {
    if (count_ == 0 || taken_.exchange(true, std::memory_order_acquire)) return false;
    // Nobody reads these: every piece of the part before is finished, so none can be taken.
    task_ = task;
    context_ = context;
    pieces_ = pieces;
    unfinished_.store(pieces, std::memory_order_relaxed);
    left_.store(pieces, std::memory_order_release);
    round_.fetch_add(1);
    wake(pieces - 1);
    take_pieces(0);
    const auto finished = [&] { return unfinished_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(finished)) {
        awaited_.store(true);
        for (int n = unfinished_.load(); n != 0; n = unfinished_.load()) unfinished_.wait(n);
        awaited_.store(false);
    }
    taken_.store(false, std::memory_order_release);
    return true;
}

// A sleeper counts itself before it looks at `round_` for the last time, and the caller bumps that
// before it looks at the count: one of them sees the other. The same holds for `awaited_`.
void Workers::wake(int wanted) {
    const int asleep = asleep_.load();
    if (asleep == 0) return;
    if (wanted >= asleep) return round_.notify_all();
    for (int i = 0; i < wanted; ++i) round_.notify_one();
}

void Workers::take_pieces(int thread) {
    while (left_.load(std::memory_order_relaxed) > 0) {
        const int left = left_.fetch_sub(1, std::memory_order_acquire);
        if (left <= 0) return; // another thread was faster
        task_(context_, pieces_ - left, thread);
        if (unfinished_.fetch_sub(1) == 1 && thread != 0 && awaited_.load())
            unfinished_.notify_one();
    }
}

void Workers::work(int thread, std::uint32_t seen) {
    for (;;) {
        const auto called = [&] { return round_.load(std::memory_order_acquire) != seen; };
        if (!spin_until(called)) {
            asleep_.fetch_add(1);
            round_.wait(seen);
            asleep_.fetch_sub(1);
        }
        seen = round_.load(std::memory_order_acquire);
        if (stopping_.load()) return;
        take_pieces(thread);
    }
}

} // namespace trilobit
