// The decoder with the arrays and files that it borrows.

#include "../decoder.h"
#include "../sampler.h"
#include "bindings.h"
#include "model.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>

namespace trilobit {
namespace {

[[noreturn]] void raise_format_error(const std::string &message) {
    const nb::object type = nb::module_::import_("trilobit.errors").attr("FormatError");
    PyErr_SetString(type.ptr(), message.c_str());
    throw nb::python_error();
}

// Samplers work at the same time, so each must be there by itself.
void require_samplers(std::vector<Sampler *> samplers) {
    std::sort(samplers.begin(), samplers.end());
    require(samplers.empty() || samplers.front(), "a sampler is None");
    require(std::adjacent_find(samplers.begin(), samplers.end()) == samplers.end(),
            "a sampler is there twice");
}

struct PyDecoder {
    std::vector<Any> kept_arrays; // alive, for the decoder borrows them
    nb::dict kept_files;          // open
    std::unique_ptr<Decoder> decoder;

    PyDecoder(const nb::dict &config, const nb::dict &tensors, const Floats &inv_freq, int threads,
              int max_batch_tokens, int kv_blocks, const std::string &kv_dtype,
              const nb::dict &files, Layout layout)
        : kept_files(nb::cast<nb::dict>(files.attr("copy")())) {
        require_threads(threads);
        require(max_batch_tokens >= 1 && max_batch_tokens <= 1 << 20,
                "max_batch_tokens must be 1 to 1048576");
        require(kv_blocks >= 1, "kv_blocks must be positive");
        const KvType kv_type = kv_dtype == "f32"   ? KvType::f32
                               : kv_dtype == "f16" ? KvType::f16
                                                   : KvType::i8;
        require(kv_type != KvType::i8 || kv_dtype == "i8", "kv_dtype must be 'f16', 'f32' or 'i8'");
        Model model = read_model(config, tensors, inv_freq, kept_files, layout);
        kept_arrays = std::move(model.arrays);
        const Capacity capacity{threads, max_batch_tokens, kv_blocks, kv_type};
        decoder =
            std::make_unique<Decoder>(model.config, model.weights, capacity, kernels_in_use());
    }

    void forward(const Ids &token_ids, const Ids &positions, const Ids &sequence,
                 const Table &block_tables, const Ids &output_rows) {
        const Config &c = decoder->config();
        const std::size_t n = token_ids.size();
        require(n >= 1 && n <= static_cast<std::size_t>(decoder->capacity().batch_tokens),
                "a batch must have 1 to max_batch_tokens tokens");
        require(positions.size() == n && sequence.size() == n,
                "token_ids, positions and sequence must have the same length");
        const auto sequences = static_cast<std::int32_t>(block_tables.shape(0));
        const auto width = static_cast<std::int32_t>(block_tables.shape(1));
        for (std::size_t i = 0; i < n; ++i) {
            const std::int32_t id = token_ids.data()[i], position = positions.data()[i],
                               s = sequence.data()[i];
            require(id >= 0 && id < c.vocab_size, "token id ", id, " is outside the vocabulary");
            require(s >= 0 && s < sequences, "sequence index outside block_tables");
            require(position >= 0 && position / kKvBlock < width, "position outside block_tables");
            if (i > 0 && s == sequence.data()[i - 1])
                require(position == positions.data()[i - 1] + 1,
                        "positions of a sequence must follow one another");
            for (std::int32_t b = 0; b <= position / kKvBlock; ++b) {
                const std::int32_t block = block_tables.data()[std::ptrdiff_t{s} * width + b];
                require(block >= 0 && block < decoder->capacity().kv_blocks,
                        "block_tables names a block that does not exist");
                // The tokens before this one have checked all but the last blocks.
                if (i > 0 && s == sequence.data()[i - 1]) b = std::max(b, position / kKvBlock - 1);
            }
        }
        require(output_rows.size() <= n, "more output rows than tokens");
        for (std::size_t i = 0; i < output_rows.size(); ++i)
            require(output_rows.data()[i] >= 0 &&
                        output_rows.data()[i] < static_cast<std::int32_t>(n),
                    "output row outside the batch");
        const Batch batch{
            span_of(token_ids),  span_of(positions), span_of(sequence), block_tables.data(), width,
            span_of(output_rows)};
        run([&] { decoder->forward(batch); });
    }

    // Without the GIL; FormatError if a row that was needed could not be read from its file.
    template <typename Function> void run(Function function) {
        {
            const nb::gil_scoped_release release;
            function();
        }
        const std::optional<int> failure = decoder->take_failure();
        if (!failure) return;
        std::string file = "the model";
        for (const auto [_, place] : kept_files)
            file = nb::cast<std::string>(nb::str(place[nb::int_(0)].attr("name")));
        const std::string reason = *failure == Rows::kFileEnded
                                       ? "it ends too early"
                                       : std::system_category().message(*failure);
        raise_format_error(file + ": a row of the embedding or head cannot be read (" + reason +
                           "); did the file change while the model ran? Load it again");
    }

    Matrix logits(int first, std::optional<int> count) {
        const int rows = rows_from(first, count);
        Matrix out = new_matrix(static_cast<std::size_t>(rows),
                                static_cast<std::size_t>(decoder->config().vocab_size));
        run([&] { decoder->logits(first, first + rows, out.data()); });
        return out;
    }

    Matrix hidden(int first, std::optional<int> count) {
        const int rows = rows_from(first, count);
        const auto columns = static_cast<std::size_t>(decoder->config().hidden_size);
        Matrix out = new_matrix(static_cast<std::size_t>(rows), columns);
        for (int i = 0; i < rows; ++i)
            std::copy_n(decoder->hidden(first + i), columns,
                        out.data() + static_cast<std::size_t>(i) * columns);
        return out;
    }

    std::span<unsigned char> kv_block(int block) {
        require(block >= 0 && block < decoder->capacity().kv_blocks, "no such block");
        return decoder->kv_block(block);
    }

    nb::bytes read_block(int block) {
        const std::span<const unsigned char> from = kv_block(block);
        return nb::bytes(from.data(), from.size());
    }

    void write_block(int block, const Bytes &data) {
        const std::span<unsigned char> to = kv_block(block);
        require(data.size() == to.size(), "a block has ", to.size(), " bytes, not ", data.size());
        std::copy_n(data.data(), to.size(), to.data());
    }

    // How many output rows are meant; all from the first on by nullopt.
    int rows_from(int first, std::optional<int> count) const {
        const int all = decoder->output_count();
        require(first >= 0 && first <= all && count.value_or(0) >= 0 &&
                    count.value_or(0) <= all - first,
                "rows outside the output rows");
        return count.value_or(all - first);
    }

    std::vector<std::vector<std::int32_t>>
    verify(const std::vector<Sampler *> &samplers,
           const std::vector<std::vector<std::int32_t>> &drafts,
           const std::vector<std::optional<Masks>> &allowed) {
        require(samplers.size() == drafts.size(), "one draft for each sampler");
        require(allowed.empty() || allowed.size() == drafts.size(),
                "a mask, or None, for each sampler");
        require_samplers(samplers);
        std::vector<Draft> both;
        std::vector<std::vector<Allowed>> rows_allowed;
        rows_allowed.reserve(drafts.size());
        std::size_t rows = samplers.size();
        for (std::size_t i = 0; i < drafts.size(); ++i) {
            const std::size_t mine = drafts[i].size() + 1;
            std::vector<Allowed> &masks = rows_allowed.emplace_back();
            if (const Masks *bits = allowed.empty() || !allowed[i] ? nullptr : &*allowed[i]) {
                require(bits->shape(0) == mine, "a row of a mask for each output row");
                for (std::size_t row = 0; row < mine; ++row)
                    masks.emplace_back(
                        std::span(bits->data() + row * bits->shape(1), bits->shape(1)));
            }
            both.push_back({samplers[i], drafts[i], masks});
            rows += drafts[i].size();
        }
        require(rows <= static_cast<std::size_t>(decoder->output_count()),
                "an output row for each sampler and each token of a draft");
        std::vector<std::vector<std::int32_t>> out;
        run([&] { decoder->verify(both, &out); });
        return out;
    }
};

} // namespace

void bind_decoder(nb::module_ &m) {
    using namespace nb::literals;
    nb::class_<PyDecoder>(m, "Decoder", "A decoder of a ternary model over borrowed weights.")
        .def(nb::init<const nb::dict &, const nb::dict &, const Floats &, int, int, int,
                      const std::string &, const nb::dict &, Layout>(),
             "config"_a, "tensors"_a, "inv_freq"_a, "threads"_a, "max_batch_tokens"_a,
             "kv_blocks"_a, "kv_dtype"_a = "f16", "files"_a = nb::dict(),
             "layout"_a = Layout::two_bit,
             "files: by a float table's name, an open file and where in it the table begins; rows "
             "are then read from there. layout: of ternary weights.")
        .def("forward", &PyDecoder::forward, "token_ids"_a, "positions"_a, "sequence"_a,
             "block_tables"_a, "output_rows"_a,
             "Run a flat batch; all arrays int32. Sequence tokens are contiguous, in order.")
        .def("logits", &PyDecoder::logits, "first"_a = 0, "count"_a = nb::none(),
             "float32 [rows, vocab] of `count` output rows of the last forward, None: to the last.")
        .def("hidden", &PyDecoder::hidden, "first"_a = 0, "count"_a = nb::none(),
             "float32 [rows, hidden]: what the head multiplies, after the final norm.")
        .def(
            "verify", &PyDecoder::verify, "samplers"_a, "drafts"_a,
            "allowed"_a = std::vector<std::optional<Masks>>(),
            "Tokens that follow in each sequence, whose output rows (the first ones of the batch) "
            "are of its last token and of its draft's: the draft as far as the sampler chooses the "
            "same, and one more, or what Sampler.sample gives where none can be chosen. allowed: "
            "for "
            "each sequence None, or uint32 [rows, words], of which bit i % 32 of word i / 32 says "
            "whether token i may be chosen.")
        .def("read_block", &PyDecoder::read_block, "block"_a,
             "Bytes of the keys and values that a block holds, in the order of this version.")
        .def("write_block", &PyDecoder::write_block, "block"_a, "data"_a,
             "Put back what `read_block` gave, into any block; ValueError for another size.")
        .def_prop_ro("threads", [](const PyDecoder &d) { return d.decoder->threads(); })
        .def(
            "threads_for",
            [](const PyDecoder &d, int tokens) {
                require(tokens >= 1, "tokens must be positive");
                return d.decoder->threads_for(tokens);
            },
            "tokens"_a, "Threads that a step of so many tokens takes: one if it is short.")
        .def_prop_ro(
            "screened_tokens",
            [](const PyDecoder &d) { return d.decoder->head().screened_tokens(); },
            "Tokens chosen from a few rows of the head, so far.")
        .def_prop_ro(
            "second_looks", [](const PyDecoder &d) { return d.decoder->head().second_looks(); },
            "Rows of which the fine plane of the screen was read, too.")
        .def_prop_ro(
            "rescored_rows", [](const PyDecoder &d) { return d.decoder->head().rescored_rows(); },
            "Rows of the head computed exactly for them.")
        .def_prop_ro(
            "full_passes", [](const PyDecoder &d) { return d.decoder->head().full_passes(); },
            "Passes over all of a head whose rows are otherwise read from a file, so far.")
        .def_prop_ro("kv_bytes", [](const PyDecoder &d) { return d.decoder->kv_bytes(); })
        .def_prop_ro(
            "cut", [](const PyDecoder &d) { return d.decoder->cut(); },
            "Keys and values of a head that were cut to the range of float16, so far.")
        .def_prop_ro(
            "activity",
            [](const PyDecoder &d) {
                std::vector<std::pair<double, double>> shares;
                const double numbers =
                    static_cast<double>(std::max<std::uint64_t>(d.decoder->tokens_seen(), 1)) *
                    d.decoder->config().intermediate_size;
                for (const Activity &a : d.decoder->activity())
                    shares.emplace_back(static_cast<double>(a.gates) / numbers,
                                        static_cast<double>(a.codes) / numbers);
                return shares;
            },
            "Of every layer of a relu² model, so far: the share of gates that were open, and of "
            "down_proj's inputs that were not zero.")
        .def_prop_ro_static("BLOCK", [](nb::handle) { return kKvBlock; });
}

} // namespace trilobit
