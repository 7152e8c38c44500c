// Every piece is done once, whoever does it, and all of it before the caller goes on: with more
// threads than cores, with several callers of the same threads, and after they have fallen asleep.

#include "check.h"
#include "tests.h"

#include "../pool.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace trilobit::test {
namespace {

// Parts of many sizes, one after the other; how many items were not done exactly once.
int wrong_items(Pool &pool, int rounds) {
    int wrong = 0;
    std::vector<int> done; // plain: one thread has an item, and the caller reads when all are done
    for (int round = 0; round < rounds; ++round) {
        const int count = round % 97;
        done.assign(size(count), 0);
        const auto mark = [&](int item) { ++done[size(item)]; };
        if (round % 2)
            pool.each(count, Pool::kLong, [&](int item, int) { mark(item); });
        else
            pool.split(
                count, Pool::kLong,
                [&](int begin, int end, int) {
                    for (int item = begin; item < end; ++item) mark(item);
                },
                1 + round % 5);
        for (const int times : done) wrong += times != 1;
    }
    return wrong;
}

void several_callers(int threads, Check &check) {
    check.begin("two callers of " + std::to_string(threads) + " threads");
    Pool one(threads), other(threads);
    std::atomic<int> wrong{0};
    std::thread beside([&] { wrong += wrong_items(other, 2000); });
    wrong += wrong_items(one, 2000);
    beside.join();
    check.that(wrong == 0, "every item is done once");
}

} // namespace

void test_pool(Check &check) {
    for (const int threads : {1, 2, 3, 8}) {
        check.begin("pool of " + std::to_string(threads));
        Pool pool(threads);
        check.that(pool.threads() == threads, "it has the threads that were asked for");
        check.that(wrong_items(pool, 2000) == 0, "every item is done once");
        for (int i = 0; i < 5; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            check.that(wrong_items(pool, 3) == 0, "threads that sleep are woken");
        }
        std::vector<int> by(size(threads));
        pool.run(64, [&](int, int thread) { ++by[size(thread)]; });
        int sum = 0;
        for (const int pieces : by) sum += pieces;
        check.that(sum == 64, "a thread has a number of its own");
        several_callers(threads, check);
    }

    check.begin("worth of sharing");
    Pool pool(4);
    const std::thread::id caller = std::this_thread::get_id();
    const auto alone = [&](double ns) {
        std::atomic<int> calls{0}, elsewhere{0};
        pool.split(1000, ns, [&](int, int, int) {
            ++calls;
            elsewhere += std::this_thread::get_id() != caller;
        });
        return calls == 1 && elsewhere == 0;
    };
    check.that(alone(1000), "a microsecond is not");
    check.that(!alone(1e6), "a millisecond is");
    {
        const Pool::Step step(pool, Pool::kStepNs - 1);
        check.that(alone(1e6), "nothing of a short step is");
    }
    const Pool::Step step(pool, Pool::kStepNs);
    check.that(!alone(1e6), "parts of a long step are");
}

} // namespace trilobit::test
