#include "rows.h"

#include <cstring>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX // libstdc++ defines it
#define NOMINMAX
#endif
#include <windows.h>

#include <io.h>
#else
#include <cerrno>
#include <unistd.h>
#endif

namespace trilobit {
namespace {

constexpr std::size_t kCacheLine = 64;

// How many bytes at `offset` could be read: 0 at the file's end, -1 with an error of the system.
std::int64_t read_at(int file, std::int64_t offset, void *to, std::size_t bytes, int *error) {
#if defined(_WIN32)
    OVERLAPPED place{};
    place.Offset = static_cast<DWORD>(offset);
    place.OffsetHigh = static_cast<DWORD>(offset >> 32);
    DWORD count = 0;
    const auto handle = reinterpret_cast<HANDLE>(_get_osfhandle(file));
    if (ReadFile(handle, to, static_cast<DWORD>(bytes), &count, &place)) return count;
    *error = static_cast<int>(GetLastError());
    return *error == ERROR_HANDLE_EOF ? 0 : -1;
#else
    for (;;) {
        const ssize_t count = pread(file, to, bytes, static_cast<off_t>(offset));
        if (count >= 0) return count;
        *error = errno;
        if (*error != EINTR) return -1;
    }
#endif
}

} // namespace

Rows::Rows(const DenseTable &table, int threads)
    : table_(table),
      row_bytes_(static_cast<std::size_t>(table.all.columns) * size_of(table.all.type)),
      stride_((row_bytes_ + kCacheLine - 1) / kCacheLine * kCacheLine) {
    if (in_file()) buffers_ = Array<unsigned char>(static_cast<std::size_t>(threads) * stride_);
}

Dense Rows::row(int row, int thread) {
    const Dense &all = table_.all;
    if (!in_file()) {
        const std::size_t begin = static_cast<std::size_t>(row) * row_bytes_;
        return {static_cast<const unsigned char *>(all.data) + begin, all.type, 1, all.columns};
    }
    if (!read(row, buffer(thread))) std::memset(buffer(thread), 0, row_bytes_);
    return {buffer(thread), all.type, 1, all.columns};
}

bool Rows::whole(int thread) { return !in_file() || read(table_.all.rows - 1, buffer(thread)); }

bool Rows::read(int row, unsigned char *buffer) {
    const std::int64_t begin =
        table_.offset + std::int64_t{row} * static_cast<std::int64_t>(row_bytes_);
    for (std::size_t done = 0; done < row_bytes_;) {
        int error = 0;
        const std::int64_t count = read_at(table_.file, begin + static_cast<std::int64_t>(done),
                                           buffer + done, row_bytes_ - done, &error);
        if (count <= 0) {
            int none = kNone; // the first failure is kept
            failure_.compare_exchange_strong(none, count == 0 ? kFileEnded : error);
            return false;
        }
        done += static_cast<std::size_t>(count);
    }
    return true;
}

std::optional<int> Rows::take_failure() {
    const int failure = failure_.exchange(kNone);
    return failure == kNone ? std::nullopt : std::optional(failure);
}

} // namespace trilobit
