// Rows of a dense table, in memory or in a file.
//
// Of an embedding or a head, few rows are wanted at a time. Where the table is a mapped file, the
// system maps up to 2 MB around each row that is touched, and soon a large table counts as this
// process's memory. So its rows are read from the file, into a buffer of the thread that wants one.
#pragma once

#include "kernels.h"
#include "memory.h"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace trilobit {

// All of a table for those who want that, and the open file from which single rows are read.
struct DenseTable {
    Dense all{};
    int file = -1;           // a descriptor; none: rows lie in memory
    std::int64_t offset = 0; // of the first row
};

class Rows {
  public:
    Rows(const DenseTable &table, int threads);

    const Dense &all() const { return table_.all; }
    bool in_file() const { return table_.file >= 0; }
    // A row as a table of its own, good until the thread wants another; zeros if it cannot be read.
    Dense row(int row, int thread);
    // Whether the last row is still there: all() of a file that was cut off must not be touched.
    bool whole(int thread);
    // Why a row could not be read, if one could not since the last call: the system's error, or
    // kFileEnded.
    static constexpr int kFileEnded = 0;
    std::optional<int> take_failure();

  private:
    static constexpr int kNone = -1;

    bool read(int row, unsigned char *buffer);
    unsigned char *buffer(int thread) const {
        return buffers_.data() + static_cast<std::size_t>(thread) * stride_;
    }

    DenseTable table_;
    std::size_t row_bytes_, stride_;
    Array<unsigned char> buffers_;
    std::atomic<int> failure_{kNone};
};

} // namespace trilobit
