// Ternary matrices of which most products are with zeros: what follows a relu² gate.
//
// Of up_proj only the rows whose gate is open count; they lie one behind the other, and a row meets
// the activations lane by lane, with a sum across lanes at its end. Of down_proj only the columns
// whose activation is not zero count; they lie one behind the other, too, and four of them become
// the four bytes of a lane, wherever they stood, so that lanes are rows as in ternary.inl. Integers
// are exact in any order and a product with zero adds nothing: the bits are those of a dense pass.
// Which rows or columns come next is known ahead, and they are fetched ahead.

constexpr int kLanesOf16 = Int8::kBytes / 16; // parts of a vector that are interleaved on their own
constexpr int kMostLines = 8192;              // rows or columns that are listed at once
constexpr int kRowsTogether = 4, kRowsAhead = 8;
constexpr int kQuads = 2;          // of columns that meet a sum in turn before it is stored
constexpr int kSumBytes = 1 << 11; // of a column that is met at once: its sums stay in a cache
constexpr std::size_t kListBytes = sizeof(std::int32_t) * (kMostLines + 4 * kQuads);

// The first lines. The others come cache line by cache line while those before them are met: more
// at once than a core has buffers for would hold it up. Not into the first cache, which is small.
inline void fetch_line(const std::uint8_t *line, int bytes) {
    for (int b = 0; b < bytes; b += kLinePad) prefetch_to_l2(line + b);
}

inline void fetch_along(const std::uint8_t *line, int at) {
    if (at % kLinePad == 0) prefetch_to_l2(line + at);
}

// In base 3, where products of bytes add up in 32 bits, digits need not be taken apart (see
// fraction_tile): their sums come out of those of the fractions at them and behind them.
template <typename Code>
constexpr bool kOfFractions = Code::kPlaces == BaseThree::kPlaces && Int8::kFractions;
constexpr int kMostFractions = 1 << 14; // of which 256 Σ d·a fits into 32 bits

inline std::int32_t digits(std::int32_t at, std::int32_t behind) {
    const std::uint32_t products =
        3 * static_cast<std::uint32_t>(at) - static_cast<std::uint32_t>(behind);
    return static_cast<std::int32_t>(products) >> 8;
}

// ---- rows -------------------------------------------------------------------------------------

// out[vector][place][byte]: what the bytes of a row meet, place by place.
inline void spread(const Ternary &w, const Activations &x, int t, std::int8_t *out) {
    const int places = places_of(w.layout), blocks = w.line_bytes() / 4;
    const std::ptrdiff_t step = 4 * x.tokens_beside(t);
    const std::int8_t *first = x.first(t);
    constexpr int kBlocks = Int8::kBytes / 4; // of a vector
    for (int b = 0; b < blocks; ++b)
        for (int place = 0; place < places; ++place) {
            const int four = b * places + place;
            std::int8_t *to = out + ((b / kBlocks * places + place) * kBlocks + b % kBlocks) * 4;
            if (four * 4 < x.columns)
                std::memcpy(to, first + four * step, 4);
            else
                std::memset(to, 0, 4);
        }
}

// Σ code·a of R rows, while R others are fetched.
template <typename Code, int R>
TRILOBIT_NOINLINE void dot_rows(const std::uint8_t *const *rows, const std::uint8_t *const *ahead,
                                int bytes, const std::int8_t *spread, std::int32_t *sums) {
    constexpr int kPlaces = Code::kPlaces;
    constexpr bool kFractions = kOfFractions<Code>;
    constexpr int kMostBytes =
        kFractions ? kMostFractions / 8 : Code::kSteps / kPlaces * Int8::kBytes;
    constexpr int kChains = kFractions || R == 1 ? 2 : 1; // a product takes some cycles
    for (int r = 0; r < R; ++r) sums[r] = 0;
    for (int b = 0; b < bytes;) {
        const int end = bytes - b > kMostBytes ? b + kMostBytes : bytes;
        Int8::Acc acc[R][kChains];
    TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r)
            TRILOBIT_UNROLL
            for (int c = 0; c < kChains; ++c) acc[r][c] = Int8::zero();
        for (; b < end; b += Int8::kBytes) {
            Int8::Vec codes[R];
            TRILOBIT_UNROLL
            for (int r = 0; r < R; ++r) {
                codes[r] = Code::load(rows[r] + b);
                fetch_along(ahead[r], b);
            }
            TRILOBIT_UNROLL
            for (int place = 0; place < kPlaces; ++place) {
                const Int8::Vec x = Int8::load(spread);
                spread += Int8::kBytes;
                TRILOBIT_UNROLL
                for (int r = 0; r < R; ++r) {
                    Int8::Acc &sum = acc[r][kFractions ? 0 : place % kChains];
                    if constexpr (kFractions) {
                        Int8::Acc &behind = acc[r][1];
                        sum = Int8::dot(sum, codes[r], x);
                        codes[r] = Int8::triple(codes[r]);
                        behind = Int8::dot(behind, codes[r], x);
                        Int8::keep(behind);
                    } else {
                        sum = Int8::dot(sum, Code::next(codes[r], place), x);
                    }
                    Int8::keep(sum);
                }
            }
        }
        TRILOBIT_UNROLL
        for (int r = 0; r < R; ++r)
            if constexpr (kFractions)
                sums[r] += digits(Int8::total(acc[r][0]), Int8::total(acc[r][1]));
            else
                TRILOBIT_UNROLL
                for (int c = 0; c < kChains; ++c) sums[r] += Int8::total(acc[r][c]);
    }
}

// Call write(i, Σ code·a) for each of `count` rows: rows[i].
template <typename Code, typename Write>
inline void each_row(const Ternary &w, const std::int8_t *spread, const std::int32_t *list,
                     int count, Write write) {
    const int bytes = w.line_bytes();
    for (int i = 0; i < min_of(kRowsAhead, count); ++i) fetch_line(w.line(list[i]), bytes);
    int i = 0;
    std::int32_t sums[kRowsTogether];
    for (; i + kRowsTogether <= count; i += kRowsTogether) {
        const std::uint8_t *rows[kRowsTogether], *ahead[kRowsTogether];
        for (int r = 0; r < kRowsTogether; ++r) {
            rows[r] = w.line(list[i + r]);
            ahead[r] = w.line(list[min_of(i + r + kRowsAhead, count - 1)]);
        }
        dot_rows<Code, kRowsTogether>(rows, ahead, bytes, spread, sums);
        for (int r = 0; r < kRowsTogether; ++r) write(i + r, sums[r]);
    }
    for (; i < count; ++i) {
        const std::uint8_t *row = w.line(list[i]);
        dot_rows<Code, 1>(&row, &row, bytes, spread, sums);
        write(i, *sums);
    }
}

// The rows of [begin, end) whose gate is open, and so not one that is no number.
inline int open_rows(const float *gate, int begin, int end, std::int32_t *list) {
    int count = 0;
    for (int row = begin; row < end; ++row) {
        list[count] = row;
        count += gate[row] > 0;
    }
    return count;
}

template <typename Code>
inline void gated_rows_of(const Ternary &w, const Activations &x, int t, const std::int8_t *spread,
                          int begin, int end, float *gate, void *scratch) {
    const float x_scale = x.scales[t];
    const std::int32_t all = x.sums[t];
    std::int32_t *list = static_cast<std::int32_t *>(scratch);
    float *gated = reinterpret_cast<float *>(list + kMostLines);
    for (int from = begin; from < end; from += kMostLines) {
        const int to = min_of(from + kMostLines, end);
        const int count = open_rows(gate, from, to, list);
        each_row<Code>(w, spread, list, count, [&](int i, std::int32_t sum) {
            const int row = list[i];
            const float up = static_cast<float>(sum - all) * (x_scale * w.scales[row * w.scale_step]);
            gated[i] = gate[row] * gate[row] * up;
        });
        // All are closed, then some are not: no branch for each.
        for (int row = from; row < to; ++row) gate[row] = 0;
        for (int i = 0; i < count; ++i) gate[list[i]] = gated[i];
    }
}

inline void gated_rows(const Ternary &w, const Activations &x, int t, const std::int8_t *spread,
                       int begin, int end, float *gate, void *scratch) {
    (w.layout == Layout::two_bit ? gated_rows_of<TwoBit> : gated_rows_of<BaseThree>)(
        w, x, t, spread, begin, end, gate, scratch);
}

// ---- columns ----------------------------------------------------------------------------------

// Of a quarter: a place's codes have one, fractions one more, behind the last place.
template <typename Code> constexpr int kSums = Code::kPlaces + kOfFractions<Code>;

// The sums of kQuads times four columns grow, for the rows in [0, bytes) of them: acc[vector of
// bytes][quarter][kSums], a lane a row. As many others are fetched meanwhile.
template <typename Code>
TRILOBIT_NOINLINE void meet_columns(const std::uint8_t *const *columns,
                                    const std::uint8_t *const *ahead, int bytes,
                                    const std::int8_t *x, Int8::Acc *acc) {
    Int8::Vec four[kQuads];
    TRILOBIT_UNROLL
    for (int q = 0; q < kQuads; ++q) four[q] = Int8::broadcast(x + 4 * q);
    for (int b = 0; b < bytes; b += Int8::kBytes) {
        Int8::Vec codes[kQuads][4];
        TRILOBIT_UNROLL
        for (int q = 0; q < kQuads; ++q) {
            TRILOBIT_UNROLL
            for (int c = 0; c < 4; ++c) {
                codes[q][c] = Code::load(columns[4 * q + c] + b);
                fetch_along(ahead[4 * q + c], b);
            }
            Int8::interleave(codes[q]);
        }
        TRILOBIT_UNROLL
        for (int quarter = 0; quarter < 4; ++quarter)
            TRILOBIT_UNROLL
            for (int place = 0; place < kSums<Code>; ++place) {
                Int8::Acc sum = *acc;
                TRILOBIT_UNROLL
                for (int q = 0; q < kQuads; ++q) {
                    Int8::Vec &bytes = codes[q][quarter];
                    if constexpr (kOfFractions<Code>) {
                        sum = Int8::dot(sum, bytes, four[q]);
                        bytes = Int8::triple(bytes);
                    } else {
                        sum = Int8::dot(sum, Code::next(bytes, place), four[q]);
                    }
                }
                *acc++ = sum;
            }
    }
}

// The sums of digits, lane by lane, of fractions at them and, behind those, of the next.
inline void add_up(const Int8::Acc *fractions, Int8::Acc *out) {
    std::int32_t at[kLanes], behind[kLanes];
    std::memcpy(at, fractions, sizeof at);
    std::memcpy(behind, fractions + 1, sizeof behind);
    for (int lane = 0; lane < kLanes; ++lane) at[lane] = digits(at[lane], behind[lane]);
    std::memcpy(out, at, sizeof at);
}

// The rows of [0, bytes) of columns: their sums, whatever lanes they are in.
template <typename Code>
inline void add_sums(const Int8::Acc *acc, int bytes, std::int32_t *sums) {
    constexpr int kPlaces = Code::kPlaces, kApart = 16 * kPlaces; // rows of 16 bytes
    for (int b = 0; b < bytes; b += Int8::kBytes, sums += kLanesOf16 * kApart) {
        Int8::Acc all[4 * kPlaces];
        for (int quarter = 0; quarter < 4; ++quarter, acc += kSums<Code> - kPlaces)
            for (int place = 0; place < kPlaces; ++place, ++acc) {
                Int8::Acc &sum = all[quarter * kPlaces + place];
                if constexpr (kOfFractions<Code>)
                    add_up(acc, &sum);
                else
                    sum = *acc;
            }
        for (int group = 0; group < kPlaces; ++group)
            Int8::add_blocks(sums + group * kRows, kApart, all + 4 * group);
    }
}

template <typename Code>
inline void add_columns_of(const Ternary &w, const Activations &x, int t, int begin, int end,
                           std::int32_t *sums, unsigned char *scratch) {
    constexpr int kTogether = 4 * kQuads;
    // Lists are padded to whole quads: a product with 0 adds nothing, of whatever column.
    constexpr int kMost = Int8::kSteps < kMostLines ? 4 * Int8::kSteps : kMostLines;
    static_assert(kMost % kTogether == 0 && kMostLines <= kMostFractions);
    Int8::Acc *acc = reinterpret_cast<Int8::Acc *>(scratch);
    std::int32_t *list = reinterpret_cast<std::int32_t *>(scratch + kSumBytes * 4 * kSums<Code>);
    std::int8_t *codes = reinterpret_cast<std::int8_t *>(list) + kListBytes;
    const std::ptrdiff_t step = 4 * x.tokens_beside(t);
    const std::int8_t *own = x.first(t);
    for (int from = begin; from < end; from += kMostLines) {
        const int to = min_of(from + kMostLines, end);
        int count = 0;
        for (int column = from; column < to; ++column) {
            const std::int8_t code = own[column / 4 * step + column % 4];
            list[count] = column;
            codes[count] = code;
            count += code != 0;
        }
        if (count == 0) continue;
        for (; count % kTogether != 0; ++count) {
            list[count] = list[count - 1];
            codes[count] = 0;
        }
        for (int first = 0; first < w.line_bytes(); first += kSumBytes) {
            const int bytes = min_of(kSumBytes, w.line_bytes() - first);
            for (int i = 0; i < kTogether; ++i)
                fetch_line(w.line(list[i]) + first, bytes);
            for (int i = 0; i < count;) {
                const int stop = min_of(i + kMost, count);
                for (int v = 0; v < bytes / Int8::kBytes * 4 * kSums<Code>; ++v)
                    acc[v] = Int8::zero();
                for (; i < stop; i += kTogether) {
                    const std::uint8_t *columns[kTogether], *ahead[kTogether];
                    for (int c = 0; c < kTogether; ++c) {
                        columns[c] = w.line(list[i + c]) + first;
                        ahead[c] = w.line(list[min_of(i + c + kTogether, count - 1)]) + first;
                    }
                    meet_columns<Code>(columns, ahead, bytes, codes + i, acc);
                }
                add_sums<Code>(acc, bytes, sums + std::ptrdiff_t{first} * Code::kPlaces);
            }
        }
    }
}

inline void add_columns(const Ternary &w, const Activations &x, int t, int begin, int end,
                        std::int32_t *sums, void *scratch) {
    (w.layout == Layout::two_bit ? add_columns_of<TwoBit> : add_columns_of<BaseThree>)(
        w, x, t, begin, end, sums, static_cast<unsigned char *>(scratch));
}

inline void settle(const Ternary &w, const Activations &x, int t, std::int32_t *sums,
                   std::ptrdiff_t apart, int parts, int group_begin, int group_end, float *out,
                   int out_stride, bool accumulate) {
    for (int group = group_begin; group < group_end; ++group) {
        std::int32_t *first = sums + std::ptrdiff_t{group} * kRows;
        std::int32_t all[kRows] = {};
        for (int part = 0; part < parts; ++part)
            for (int r = 0; r < kRows; ++r) {
                all[r] += first[part * apart + r];
                first[part * apart + r] = 0;
            }
        write_rows(w, x, group, t, all, out, out_stride, accumulate);
    }
    if (group_end == w.groups()) // what the padding of columns has left
        for (int part = 0; part < parts; ++part)
            for (int row = w.groups() * kRows; row < w.line_codes(); ++row)
                sums[part * apart + row] = 0;
}
