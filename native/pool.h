// A pool of threads for one engine: fork, join, nothing else.
//
// Inside a Step the workers spin, because the pauses between parallel parts are shorter than a
// wake-up; between steps they sleep. The caller is thread 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace trilobit {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Call f(thread) once on every thread; returns when all have returned.
    template <typename F> void run(F &&f) {
        using Function = std::remove_reference_t<F>;
        run([](void *context, int thread) { (*static_cast<Function *>(context))(thread); }, &f);
    }

    // Split [0, count) evenly in order: f(begin, end, thread). One item runs on the caller alone.
    template <typename F> void split(int count, F &&f) {
        if (count <= 1) {
            if (count == 1) f(0, 1, 0);
            return;
        }
        const int n = threads();
        run([&](int thread) {
            const int begin = share(count, thread, n), end = share(count, thread + 1, n);
            if (begin < end) f(begin, end, thread);
        });
    }

    // Hand out [0, count) one by one, for items of unequal cost: f(item, thread).
    template <typename F> void each(int count, F &&f) {
        if (count <= 1) {
            if (count == 1) f(0, 0);
            return;
        }
        std::atomic<int> next{0};
        run([&](int thread) {
            for (int i = next.fetch_add(1); i < count; i = next.fetch_add(1)) f(i, thread);
        });
    }

    static int share(int count, int thread, int threads) {
        return static_cast<int>(std::int64_t{count} * thread / threads);
    }

    class Step {
      public:
        explicit Step(Pool &pool) : pool_(pool) {
            pool_.revive();
            pool_.awake_.store(true);
        }
        ~Step() { pool_.awake_.store(false); }
        Step(const Step &) = delete;
        Step &operator=(const Step &) = delete;

      private:
        Pool &pool_;
    };

  private:
    using Task = void (*)(void *context, int thread);

    void start(int threads);
    void revive();
    bool forked() const;
    void run(Task task, void *context);
    void work(int thread, std::uint32_t seen);

    std::vector<std::thread> workers_;
    long process_ = 0; // whose workers they are
    Task task_ = nullptr;
    void *context_ = nullptr;
    alignas(64) std::atomic<std::uint32_t> round_{0}; // bumped to start a task
    alignas(64) std::atomic<int> running_{0};         // workers that have not finished it
    alignas(64) std::atomic<bool> awake_{false};
    std::atomic<bool> stopping_{false};
};

} // namespace trilobit
