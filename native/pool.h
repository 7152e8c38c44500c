// Threads that share the parts of a step: fork, join, nothing else.
//
// A part is cut into pieces, and whoever is free takes the next one; the caller too, who is thread
// 0. So a thread that the system keeps waiting costs the piece in its hand and not its share, and
// threads that never come cost nothing. Whoever waits spins for as long as a wake-up takes, then
// sleeps, so that a core is there for the thread that is waited for.
//
// Threads belong to the process: every Pool of a size shares them. While one caller has them,
// others do their parts alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace trilobit {

#if defined(__wasi__) // no threads: whoever asks does all by itself
class Workers {
  public:
    using Task = void (*)(void *context, int piece, int thread);

    static std::shared_ptr<Workers> shared(int) { return std::make_shared<Workers>(); }
    int count() const { return 0; }
    bool run(int, Task, void *) { return false; }
    void revive() {}
};
#else
class Workers {
  public:
    using Task = void (*)(void *context, int piece, int thread);

    // The `count` threads that all who ask for so many share.
    static std::shared_ptr<Workers> shared(int count);
    explicit Workers(int count);
    ~Workers();
    Workers(const Workers &) = delete;
    Workers &operator=(const Workers &) = delete;

    int count() const { return count_; }
    // task(context, piece, thread) for every piece, by these threads and the caller; false, and
    // nothing is done, while another caller has them.
    bool run(int pieces, Task task, void *context);
    // Threads do not follow into the child of a fork: there they are started anew.
    void revive();

  private:
    void start();
    void leave_behind();
    void work(int thread, std::uint32_t seen);
    void take_pieces(int thread);
    void wake(int wanted);

    const int count_;
    std::vector<std::thread> threads_;
    std::atomic<long> process_; // whose threads they are; negative while they are started anew
    Task task_ = nullptr;
    void *context_ = nullptr;
    int pieces_ = 0;
    std::atomic<bool> taken_{false};                  // by a caller
    alignas(64) std::atomic<std::uint32_t> round_{0}; // bumped when there is something to do
    std::atomic<int> asleep_{0};                      // threads that wait for that
    std::atomic<bool> stopping_{false};
    alignas(64) std::atomic<int> left_{0};       // pieces that nobody has taken
    alignas(64) std::atomic<int> unfinished_{0}; // pieces
    std::atomic<bool> awaited_{false};           // the caller sleeps until there are none
};
#endif

// An engine's way to them. `ns`: about how long one thread takes for all of a part or step, which
// decides whether sharing it is worth while.
class Pool {
  public:
    static constexpr double kLong = std::numeric_limits<double>::infinity();

    // threads: with the caller.
    explicit Pool(int threads) : workers_(Workers::shared(threads - 1)) {}
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int threads() const { return workers_->count() + 1; }

    // Cut [0, count) in order: f(begin, end, thread). Pieces begin at multiples of `unit`.
    template <typename F> void split(int count, double ns, F &&f, int unit = 1) {
        const int units = (count + unit - 1) / unit, pieces = std::min(units, pieces_of(ns));
        if (pieces <= 1) {
            if (count > 0) f(0, count, 0);
            return;
        }
        run(pieces, [&](int piece, int thread) {
            const int begin = unit * share(units, piece, pieces);
            f(begin, std::min(unit * share(units, piece + 1, pieces), count), thread);
        });
    }

    // Hand out [0, count) one by one, for items of unequal cost: f(item, thread).
    template <typename F> void each(int count, double ns, F &&f) {
        if (count <= 1 || pieces_of(ns) <= 1) {
            for (int i = 0; i < count; ++i) f(i, 0);
            return;
        }
        run(count, f);
    }

    // f(piece, thread), whatever it costs.
    template <typename F> void run(int pieces, F &&f) {
        using Function = std::remove_reference_t<F>;
        const auto task = [](void *context, int piece, int thread) {
            (*static_cast<Function *>(context))(piece, thread);
        };
        if (!workers_->run(pieces, task, &f))
            for (int piece = 0; piece < pieces; ++piece) f(piece, 0);
    }

    static int share(int count, int piece, int pieces) {
        return static_cast<int>(std::int64_t{count} * piece / pieces);
    }

    // Threads that a step takes. Below this, waking them and handing out some forty parts costs
    // more than they give.
    static constexpr double kStepNs = 300'000;
    int threads_for(double step_ns) const { return step_ns < kStepNs ? 1 : threads(); }

    // Before the first part of a step.
    class Step {
      public:
        explicit Step(Pool &pool, double ns = kLong) : pool_(pool) {
            pool_.workers_->revive();
            pool_.alone_ = pool_.threads_for(ns) == 1;
        }
        ~Step() { pool_.alone_ = false; }
        Step(const Step &) = delete;
        Step &operator=(const Step &) = delete;

      private:
        Pool &pool_;
    };

  private:
    // A part is worth sharing from here on; a piece is worth taking; and pieces of a thread, which
    // a late one costs at most.
    static constexpr double kPartNs = 5'000, kPieceNs = 20'000;
    static constexpr int kMostPieces = 8;

    int pieces_of(double ns) const {
        if (alone_ || threads() == 1 || ns < kPartNs) return 1;
        const double each = ns / (threads() * kPieceNs);
        return threads() * static_cast<int>(std::clamp(each, 1.0, double{kMostPieces}));
    }

    std::shared_ptr<Workers> workers_;
    bool alone_ = false;
};

} // namespace trilobit
