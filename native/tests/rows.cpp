// Rows that are read from a file are those that lie in memory, and a file that ends too early is
// noticed and gives zeros.

#include "check.h"
#include "tests.h"

#include "../rows.h"
#include "file.h"

#include <algorithm>
#include <thread>

namespace trilobit::test {
namespace {

constexpr int kRowCount = 200, kThreads = 4;
constexpr std::int64_t kOffset = 13; // rows need not be aligned

std::size_t bytes_of(const Dense &table) {
    return size(table.columns) * static_cast<std::size_t>(size_of(table.type));
}

bool same_row(const Dense &row, const Dense &table, int number) {
    const auto *all = static_cast<const unsigned char *>(table.data);
    return row.rows == 1 && row.columns == table.columns && row.type == table.type &&
           std::memcmp(row.data, all + size(number) * bytes_of(table), bytes_of(table)) == 0;
}

void every_row(const Dense &table, const File &file, Check &check) {
    Rows in_memory({table}, kThreads), in_file({table, file.descriptor(), kOffset}, kThreads);
    check.that(!in_memory.in_file() && in_file.in_file(), "a table knows where its rows are");
    bool same[kThreads] = {};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread)
        threads.emplace_back([&, thread] {
            same[thread] = true;
            for (int row = thread; row < table.rows; row += 3) // some by several threads
                same[thread] &= same_row(in_memory.row(row, thread), table, row) &&
                                same_row(in_file.row(row, thread), table, row);
        });
    for (std::thread &thread : threads) thread.join();
    check.that(std::all_of(same, same + kThreads, [](bool s) { return s; }),
               "rows are the table's");
    check.that(in_memory.whole(0) && in_file.whole(0), "the table is whole");
    check.that(!in_memory.take_failure() && !in_file.take_failure(), "nothing failed");
}

void cut_off(const Dense &table, Check &check) {
    const std::size_t rows = 7, kept = rows * bytes_of(table) + 1; // one byte of the next
    const File file(table.data, kept, kOffset);
    Rows cut({table, file.descriptor(), kOffset}, 2);
    check.that(same_row(cut.row(6, 0), table, 6) && !cut.take_failure(), "what is there is read");
    const Dense row = cut.row(7, 1);
    const auto *bytes = static_cast<const unsigned char *>(row.data);
    check.that(std::all_of(bytes, bytes + bytes_of(table), [](auto b) { return b == 0; }),
               "a row that is not whole is zeros");
    check.that(cut.take_failure() == Rows::kFileEnded, "the file's end is the reason");
    check.that(!cut.take_failure(), "which is told once");
    check.that(!cut.whole(0) && cut.take_failure() == Rows::kFileEnded, "the table is not whole");
    Rows closed({table, 1 << 20}, 1);
    closed.row(0, 0);
    const std::optional<int> failure = closed.take_failure();
    check.that(failure && *failure > 0, "a descriptor of no file is the system's error");
}

} // namespace

void test_rows(const Kernels &k, Check &check) {
    Random random(5);
    for (const int columns : {1, 60, 2560}) {
        check.begin(std::string(k.name) + " rows of " + std::to_string(columns));
        const std::vector<float> values = random.floats(size(kRowCount, columns), -1, 1);
        for (const Float type : {Float::f32, Float::f16, Float::bf16}) {
            const Dense table{values.data(), type, kRowCount, columns};
            every_row(table, File(values.data(), kRowCount * bytes_of(table), kOffset), check);
            cut_off(table, check);
        }
    }
}

} // namespace trilobit::test
