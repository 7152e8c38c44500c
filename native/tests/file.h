// A temporary file with bytes in it, and its descriptor.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace trilobit::test {

class File {
  public:
    // `bytes` bytes of `data` behind `offset` others.
    File(const void *data, std::size_t bytes, std::int64_t offset) : file_(temporary()) {
        bool written = file_;
        for (std::int64_t i = 0; i < offset && written; ++i)
            written = std::fputc('x', file_) != EOF;
        if (!written || std::fwrite(data, 1, bytes, file_) != bytes || std::fflush(file_) != 0) {
            std::perror("a temporary file");
            std::exit(1);
        }
    }
    ~File() { std::fclose(file_); }
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    int descriptor() const {
#if defined(_WIN32)
        return _fileno(file_);
#else
        return fileno(file_);
#endif
    }

  private:
    static std::FILE *temporary() {
#if defined(__wasi__)
        return std::fopen("native_tests.rows", "w+b"); // in the one folder that it is given
#else
        return std::tmpfile();
#endif
    }

    std::FILE *file_;
};

} // namespace trilobit::test
