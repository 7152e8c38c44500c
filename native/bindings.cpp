// The Python face of the core: checks every argument, then calls it without the GIL. The only file
// that throws.

#include "decoder.h"
#include "isa.h"
#include "limits.h"
#include "packing.h"
#include "sampler.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>

namespace nb = nanobind;
using namespace nb::literals;
using namespace trilobit;

namespace {

using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const std::int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const std::int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using NewBytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;

void require(bool condition, const std::string &message) {
    if (!condition) throw nb::value_error(message.c_str());
}

std::span<const std::int32_t> span_of(const Ids &ids) { return {ids.data(), ids.size()}; }

Matrix new_matrix(std::size_t rows, std::size_t columns) {
    float *data = new float[rows * columns]();
    nb::capsule owner(data, [](void *p) noexcept { delete[] static_cast<float *>(p); });
    return Matrix(data, {rows, columns}, owner);
}

const Kernels &kernels_or_throw() {
    std::string error;
    const Kernels *kernels = chosen_kernels(&error);
    if (!kernels) throw std::runtime_error(error);
    return *kernels;
}

const Kernels &kernels_named(const std::string &name) {
    for (const Kernels *k : available_kernels())
        if (name == k->name) return *k;
    throw nb::value_error(("instruction set '" + name + "' is not available here").c_str());
}

[[noreturn]] void raise_format_error(const std::string &message) {
    const nb::object type = nb::module_::import_("trilobit.errors").attr("FormatError");
    PyErr_SetString(type.ptr(), message.c_str());
    throw nb::python_error();
}

// Codes of a byte of packed weights.
void require_layout(int places) {
    require(places == kTwoBit || places == kBaseThree,
            "places must be 4 (the 2-bit layout) or 5 (the 1.6-bit layout)");
}

// ---- reading a model's tensors -------------------------------------------------------------

struct Tensors {
    nb::dict dict;
    nb::dict files; // name: (open file, offset) of tables whose rows are read from there
    std::vector<Any> *kept;
    int places;            // of the layout of ternary matrices
    std::string scales_by; // tensor, row or group
    bool projection_norms;

    Any get(const std::string &name) const {
        require(dict.contains(name.c_str()), "tensor '" + name + "' is missing");
        Any array = nb::cast<Any>(dict[name.c_str()]);
        kept->push_back(array);
        return array;
    }

    const float *floats(const std::string &name, std::size_t size) const {
        const Any array = get(name);
        require(array.dtype() == nb::dtype<float>() && array.size() == size,
                "tensor '" + name + "' is not float32 of " + std::to_string(size) + " elements");
        return static_cast<const float *>(array.data());
    }

    Ternary ternary(const std::string &name, int rows, int columns) const {
        Ternary t{nullptr, nullptr, 0, rows, columns, places};
        const std::string scales = name + ".weight_scale";
        if (scales_by == "group") {
            require(t.scale_groups() <= 1 << 12,
                    "tensor '" + name + "' has more than 4096 groups a row");
            t.group_scales = dense(scales, rows, t.scale_groups());
        } else {
            t.scale_step = scales_by == "row";
            t.scales = floats(scales, t.scale_step ? static_cast<std::size_t>(rows) : 1);
        }
        const Any array = get(name + ".weight");
        require(array.dtype() == nb::dtype<std::uint8_t>() && array.size() == t.bytes(),
                "tensor '" + name + ".weight' is not " + std::to_string(t.bytes()) +
                    " packed bytes");
        t.packed = static_cast<const std::uint8_t *>(array.data());
        return t;
    }

    Projection projection(const std::string &name, int rows, int columns) const {
        return {ternary(name, rows, columns),
                optional(projection_norms, name + ".rms_norm.weight", columns)};
    }

    const float *optional(bool there, const std::string &name, int size) const {
        return there ? floats(name, static_cast<std::size_t>(size)) : nullptr;
    }

    Dense dense(const std::string &name, int rows, int columns) const {
        const Any array = get(name);
        require(array.size() == static_cast<std::size_t>(rows) * columns,
                "tensor '" + name + "' is not [" + std::to_string(rows) + ", " +
                    std::to_string(columns) + "]");
        const nb::dlpack::dtype type = array.dtype();
        Float kind = Float::f32;
        if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
            type.bits == 16)
            kind = Float::f16;
        else if (type == nb::dtype<std::uint16_t>())
            kind = Float::bf16;
        else
            require(type == nb::dtype<float>(),
                    "tensor '" + name + "' is not float32, float16 or bfloat16 (as uint16)");
        return {array.data(), kind, rows, columns};
    }

    DenseTable table(const std::string &name, int rows, int columns) const {
        DenseTable t{dense(name, rows, columns)};
        if (!files.contains(name.c_str())) return t;
        const auto [file, offset] =
            nb::cast<std::pair<nb::object, std::int64_t>>(files[name.c_str()]);
        t.file = nb::cast<int>(file.attr("fileno")());
        t.offset = offset;
        require(t.file >= 0 && offset >= 0, "the place of '" + name + "' is negative");
        return t;
    }
};

// The screen of a head, if there is one.
Screen read_screen(const Tensors &t, int rows, int columns) {
    Screen s{};
    if (!t.dict.contains("lm_head.screen.codes")) return s;
    s.rows = rows;
    s.columns = round_up(columns, kScreenPad);
    s.block = std::min(s.columns & -s.columns, 512);
    const Any codes = t.get("lm_head.screen.codes");
    const std::size_t bytes = static_cast<std::size_t>(round_up(rows, kRows)) * s.columns / 2;
    require(codes.dtype() == nb::dtype<std::uint8_t>() && codes.size() == bytes,
            "tensor 'lm_head.screen.codes' is not " + std::to_string(bytes) + " bytes");
    s.codes = static_cast<const std::uint8_t *>(codes.data());
    s.scales = t.floats("lm_head.screen.scales", static_cast<std::size_t>(rows));
    s.residuals = t.floats("lm_head.screen.residuals", static_cast<std::size_t>(rows));
    return s;
}

int positive(const nb::dict &config, const char *name) {
    require(config.contains(name), std::string("config: ") + name + " is missing");
    const int value = nb::cast<int>(config[name]);
    require(value > 0, std::string("config: ") + name + " must be positive");
    return value;
}

template <typename T> T value_of(const nb::dict &config, const char *name) {
    require(config.contains(name), std::string("config: ") + name + " is missing");
    return nb::cast<T>(config[name]);
}

// The value, or `otherwise` where it is None.
template <typename T> T value_or(const nb::dict &config, const char *name, T otherwise) {
    require(config.contains(name), std::string("config: ") + name + " is missing");
    const nb::object value = config[name];
    return value.is_none() ? otherwise : nb::cast<T>(value);
}

Activation read_activation(const std::string &name) {
    if (name == "relu2") return Activation::relu2;
    if (name == "silu") return Activation::silu;
    require(name == "gelu_pytorch_tanh", "config: hidden_act '" + name + "' is unknown");
    return Activation::gelu_tanh;
}

// Of ModelConfig.to_dict().
Config read_config(const nb::dict &d) {
    Config c{positive(d, "vocab_size"),
             positive(d, "hidden_size"),
             positive(d, "intermediate_size"),
             positive(d, "num_hidden_layers"),
             positive(d, "num_attention_heads"),
             positive(d, "num_key_value_heads"),
             positive(d, "head_dim"),
             value_of<float>(d, "rms_norm_eps")};
    require(c.head_dim % 2 == 0 && c.head_dim <= 1024, "config: head_dim must be even, ≤ 1024");
    require(c.num_attention_heads % c.num_key_value_heads == 0,
            "config: num_attention_heads is not a multiple of num_key_value_heads");
    c.projection_norm_eps = value_or(d, "projection_norm_eps", 0.0f);
    c.hidden_act = read_activation(value_of<std::string>(d, "hidden_act"));
    c.embedding_scale = value_of<float>(d, "embedding_scale");
    c.query_pre_attn_scalar = value_or(d, "query_pre_attn_scalar", 0.0f);
    c.sliding_window = value_or(d, "sliding_window", 0);
    const auto scaling = value_or(d, "rope_scaling", nb::dict());
    if (scaling.contains("attention_factor"))
        c.attention_factor = nb::cast<float>(scaling["attention_factor"]);
    return c;
}

Weights read_weights(const Config &c, const nb::dict &d, const Tensors &t) {
    const int q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
    const int h = c.hidden_size, f = c.intermediate_size;
    const bool tied = value_of<bool>(d, "tie_word_embeddings");
    const bool sub = value_of<bool>(d, "sub_norms"), qk = value_of<bool>(d, "qk_norms");
    const bool post = value_of<bool>(d, "post_norms");
    const auto types = value_of<std::vector<std::string>>(d, "layer_types");
    require(types.empty() || types.size() == static_cast<std::size_t>(c.num_hidden_layers),
            "config: layer_types must name every layer");
    Weights w{};
    if (value_of<bool>(d, "ternary_embeddings")) {
        require(t.scales_by == "group", "config: ternary_embeddings need scales by group");
        w.ternary_embed_tokens = t.ternary("model.embed_tokens", c.vocab_size, h);
        w.ternary_lm_head = tied ? w.ternary_embed_tokens : t.ternary("lm_head", c.vocab_size, h);
    } else {
        w.embed_tokens = t.table("model.embed_tokens.weight", c.vocab_size, h);
        w.lm_head = tied ? w.embed_tokens : t.table("lm_head.weight", c.vocab_size, h);
        w.screen = read_screen(t, c.vocab_size, h);
    }
    w.norm = t.floats("model.norm.weight", static_cast<std::size_t>(h));
    for (int n = 0; n < c.num_hidden_layers; ++n) {
        const std::string p = "model.layers." + std::to_string(n) + ".";
        const std::string attn = p + "self_attn.", mlp = p + "mlp.";
        Layer l{};
        l.attn_norm = t.optional(true, p + "input_layernorm.weight", h);
        // Gemma calls the norm after attention what others call the one before the MLP.
        const std::string after = p + "post_attention_layernorm.weight";
        l.mlp_norm = t.optional(true, post ? p + "pre_feedforward_layernorm.weight" : after, h);
        l.attn_post_norm = t.optional(post, after, h);
        l.mlp_post_norm = t.optional(post, p + "post_feedforward_layernorm.weight", h);
        l.attn_sub_norm = t.optional(sub, attn + "attn_sub_norm.weight", q);
        l.ffn_sub_norm = t.optional(sub, mlp + "ffn_sub_norm.weight", f);
        l.q_norm = t.optional(qk, attn + "q_norm.weight", c.head_dim);
        l.k_norm = t.optional(qk, attn + "k_norm.weight", c.head_dim);
        l.q_proj = t.projection(attn + "q_proj", q, h);
        l.k_proj = t.projection(attn + "k_proj", kv, h);
        l.v_proj = t.projection(attn + "v_proj", kv, h);
        l.o_proj = t.projection(attn + "o_proj", h, q);
        l.gate_proj = t.projection(mlp + "gate_proj", f, h);
        l.up_proj = t.projection(mlp + "up_proj", f, h);
        l.down_proj = t.projection(mlp + "down_proj", h, f);
        l.sliding = !types.empty() && types[static_cast<std::size_t>(n)] == "sliding_attention";
        require(!l.sliding || c.sliding_window > 0, "config: sliding_window must be positive");
        w.layers.push_back(l);
    }
    return w;
}

// ---- the decoder with its borrowed arrays --------------------------------------------------

struct PyDecoder {
    std::vector<Any> kept; // keeps the borrowed buffers alive
    nb::dict kept_files;   // and these open
    std::unique_ptr<Decoder> decoder;

    PyDecoder(const nb::dict &config, const nb::dict &tensors, const Floats &inv_freq, int threads,
              int max_batch_tokens, int kv_blocks, const std::string &kv_dtype,
              const nb::dict &files, int places)
        : kept_files(nb::cast<nb::dict>(files.attr("copy")())) {
        require_layout(places);
        const Config c = read_config(config);
        require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
        require(max_batch_tokens >= 1 && max_batch_tokens <= 1 << 20,
                "max_batch_tokens must be 1 to 1048576");
        require(kv_blocks >= 1, "kv_blocks must be positive");
        const KvType kv_type = kv_dtype == "f32"   ? KvType::f32
                               : kv_dtype == "f16" ? KvType::f16
                                                   : KvType::i8;
        require(kv_type != KvType::i8 || kv_dtype == "i8", "kv_dtype must be 'f16', 'f32' or 'i8'");
        const bool local = value_or(config, "rope_local_base_freq", 0.0f) > 0;
        const std::size_t half = static_cast<std::size_t>(c.head_dim) / 2;
        require(inv_freq.size() == (local ? 2 : 1) * half,
                "inv_freq must have head_dim / 2 elements, twice that with rope_local_base_freq");
        const bool projection_norms = !config["projection_norm_eps"].is_none();
        const std::string scales = value_of<std::string>(config, "scales");
        require(!projection_norms || scales != "group",
                "config: projection norms with scales by group are not supported");
        require(places == kTwoBit || scales != "group",
                "scales by group need the 2-bit layout of weights");
        Weights w =
            read_weights(c, config, {tensors, kept_files, &kept, places, scales, projection_norms});
        w.inv_freq = inv_freq.data();
        if (local) w.local_inv_freq = inv_freq.data() + half;
        const Capacity capacity{threads, max_batch_tokens, kv_blocks, kv_type};
        decoder = std::make_unique<Decoder>(c, w, capacity, kernels_or_throw());
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
            require(id >= 0 && id < c.vocab_size,
                    "token id " + std::to_string(id) + " is outside the vocabulary");
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

    Matrix logits() {
        const auto rows = static_cast<std::size_t>(decoder->output_count());
        Matrix out = new_matrix(rows, static_cast<std::size_t>(decoder->config().vocab_size));
        run([&] { decoder->logits(0, static_cast<int>(rows), out.data()); });
        return out;
    }

    Matrix hidden() {
        const auto rows = static_cast<std::size_t>(decoder->output_count());
        const auto columns = static_cast<std::size_t>(decoder->config().hidden_size);
        Matrix out = new_matrix(rows, columns);
        for (std::size_t i = 0; i < rows; ++i)
            std::copy_n(decoder->hidden(static_cast<int>(i)), columns, out.data() + i * columns);
        return out;
    }

    std::vector<std::int32_t> sample(const std::vector<Sampler *> &samplers) {
        require(samplers.size() == static_cast<std::size_t>(decoder->output_count()),
                "one sampler for each output row");
        std::vector<std::int32_t> out(samplers.size());
        run([&] { decoder->sample(samplers, out.data()); });
        return out;
    }

    std::vector<std::vector<std::int32_t>>
    verify(const std::vector<Sampler *> &samplers,
           const std::vector<std::vector<std::int32_t>> &drafts) {
        require(samplers.size() == drafts.size(), "one draft for each sampler");
        std::vector<Draft> both;
        std::size_t rows = samplers.size();
        for (std::size_t i = 0; i < drafts.size(); ++i) {
            both.push_back({samplers[i], drafts[i]});
            rows += drafts[i].size();
        }
        require(rows == static_cast<std::size_t>(decoder->output_count()),
                "an output row for each sampler and each token of a draft");
        std::vector<std::vector<std::int32_t>> out;
        run([&] { decoder->verify(both, &out); });
        return out;
    }
};

// ---- kernels, for the tests ----------------------------------------------------------------

Matrix kernel_linear(const std::string &isa, const Bytes &packed, int rows, int columns,
                     const Codes &x, int threads, int places) {
    const Kernels &k = kernels_named(isa);
    require_layout(places);
    const float one = 1;
    const Ternary w{packed.data(), &one, 0, rows, columns, places};
    require(rows > 0 && columns > 0 && packed.size() == w.bytes(),
            "packed does not have the size of [rows, columns]");
    require(x.shape(1) == static_cast<std::size_t>(columns), "x must be [tokens, columns]");
    const int tokens = static_cast<int>(x.shape(0)), padded = padded_columns(columns);
    Array<float> scales(static_cast<std::size_t>(tokens));
    Array<std::int8_t> codes(static_cast<std::size_t>(tokens) * padded);
    Array<std::int32_t> sums(static_cast<std::size_t>(tokens));
    const Activations a{codes.data(), scales.data(), sums.data(),
                        tokens,       padded,        k.tile_tokens(tokens)};
    for (int t = 0; t < tokens; ++t) {
        scales[t] = 1;
        for (int i = 0; i < columns; ++i) {
            const std::int8_t code = x.data()[std::ptrdiff_t{t} * columns + i];
            a.first(t)[i / 4 * 4 * a.tokens_beside(t) + i % 4] = code;
            sums[t] += code;
        }
    }
    Matrix out = new_matrix(static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows));
    Pool pool(threads);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    pool.split(w.groups(), [&](int begin, int end, int thread) {
        k.linear(w, a, begin, end, out.data(), rows, false,
                 scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
    });
    return out;
}

Matrix kernel_linear_groups(const std::string &isa, const Bytes &packed, const Floats &scales,
                            int rows, int columns, const Floats &x, int threads) {
    const Kernels &k = kernels_named(isa);
    require(rows > 0 && columns > 0 && threads >= 1, "rows, columns and threads must be positive");
    Ternary w{packed.data(), nullptr, 0, rows, columns};
    w.group_scales = {scales.data(), Float::f32, rows, w.scale_groups()};
    require(packed.size() == w.bytes() &&
                scales.size() == static_cast<std::size_t>(rows) * w.scale_groups(),
            "packed or scales do not have the size of [rows, columns]");
    require(x.ndim() == 2 && x.shape(1) == static_cast<std::size_t>(columns),
            "x must be [tokens, columns]");
    const int tokens = static_cast<int>(x.shape(0));
    const std::size_t groups = static_cast<std::size_t>(tokens) * w.scale_groups();
    Array<std::int8_t> codes(2 * groups * kScaleColumns);
    Array<float> code_scales(groups);
    Array<std::int32_t> sums(groups);
    const WideActivations a{{codes.data(), code_scales.data(), sums.data(), 2 * tokens,
                             w.scale_groups() * kScaleColumns, k.wide_tile_tokens(2 * tokens)}};
    for (int t = 0; t < tokens; ++t)
        k.quantise_groups(x.data() + std::ptrdiff_t{t} * columns, columns, a, t);
    Matrix out = new_matrix(static_cast<std::size_t>(tokens), static_cast<std::size_t>(rows));
    Pool pool(threads);
    Array<unsigned char> scratch(static_cast<std::size_t>(threads) * kScratchBytes);
    pool.split(w.groups(), [&](int begin, int end, int thread) {
        k.linear_groups(w, a, begin, end, out.data(), rows, false,
                        scratch.data() + static_cast<std::size_t>(thread) * kScratchBytes);
    });
    return out;
}

nb::tuple kernel_norm_quantise(const std::string &isa, const Floats &x, const Floats &gain,
                               float eps) {
    const Kernels &k = kernels_named(isa);
    require(x.size() == gain.size() && x.size() > 0, "x and gain must have the same length");
    const int n = static_cast<int>(x.size()), size = padded_columns(n);
    Array<float> padded(static_cast<std::size_t>(size)), gains(static_cast<std::size_t>(size));
    std::copy_n(x.data(), n, padded.data());
    std::copy_n(gain.data(), n, gains.data());
    Array<std::int8_t> codes(static_cast<std::size_t>(size));
    float scale = 0;
    std::int32_t sum = 0;
    k.norm_quantise(padded.data(), gains.data(), n, eps, {codes.data(), &scale, &sum, 1, size, 1},
                    0);
    return nb::make_tuple(std::vector<int>(codes.data(), codes.data() + n), scale, sum);
}

void require_sizes(int rows, int columns, int tokens, int threads, int repeats) {
    require(rows >= 1 && columns >= 1 && tokens >= 1 && repeats >= 1,
            "rows, columns, tokens and repeats must be positive");
    require(rows <= 1 << 20 && columns <= 1 << 16 && tokens <= 1 << 12,
            "rows, columns or tokens are beyond 2^20, 2^16 or 2^12");
    require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
}

std::vector<double> kernel_linear_seconds(const std::string &isa, int rows, int columns, int tokens,
                                          int threads, int repeats, int places) {
    const Kernels &k = isa.empty() ? kernels_or_throw() : kernels_named(isa);
    require_layout(places);
    require_sizes(rows, columns, tokens, threads, repeats);
    const nb::gil_scoped_release release;
    return linear_seconds(k, places, rows, columns, tokens, threads, repeats);
}

std::vector<double> kernel_screen_seconds(const std::string &isa, int rows, int columns, int tokens,
                                          int threads, int repeats) {
    const Kernels &k = kernels_named(isa);
    require_sizes(rows, columns, tokens, threads, repeats);
    const nb::gil_scoped_release release;
    return screen_seconds(k, rows, columns, tokens, threads, repeats);
}

bool check_codes(const Bytes &packed, int threads, int places) {
    require_layout(places);
    require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
    const nb::gil_scoped_release release;
    return codes_are_ternary(packed.data(), packed.size(), places, threads);
}

NewBytes repacked(const Bytes &packed, int rows, int columns, int places, int new_places,
                  int threads) {
    require_layout(places);
    require_layout(new_places);
    require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
    const Ternary from{packed.data(), nullptr, 0, rows, columns, places};
    const Ternary to{nullptr, nullptr, 0, rows, columns, new_places};
    require(rows > 0 && columns > 0 && packed.size() == from.bytes(),
            "packed does not have the size of [rows, columns]");
    auto *data = new std::uint8_t[to.bytes()];
    const nb::capsule owner(data,
                            [](void *p) noexcept { delete[] static_cast<std::uint8_t *>(p); });
    {
        const nb::gil_scoped_release release;
        repack(from, to, data, threads);
    }
    return NewBytes(data, {to.bytes()}, owner);
}

} // namespace

NB_MODULE(_native, m) {
    m.doc() = "The C++ core: kernels, decoder and sampler.";
    nb::set_leak_warnings(false); // daemon threads hold what they use when the interpreter goes
    m.def(
        "isa", [] { return std::string(kernels_or_throw().name); },
        "The instruction set in use; TRILOBIT_ISA forces one.");
    m.def(
        "isas",
        [] {
            std::vector<std::string> names;
            for (const Kernels *k : available_kernels()) names.emplace_back(k->name);
            return names;
        },
        "Instruction sets that this processor can run, the fastest last.");
    m.def("check_codes", &check_codes, "packed"_a, "threads"_a = 1, "places"_a = kTwoBit,
          "True when every packed byte stands for `places` ternary weights.");
    m.def("repacked", &repacked, "packed"_a, "rows"_a, "columns"_a, "places"_a, "new_places"_a,
          "threads"_a = 1, "uint8: a matrix [rows, columns] in another layout.");
    m.def(
        "dram_read_gb_per_s",
        [](int threads, int repeats, const std::string &isa) {
            require(threads >= 1 && threads <= 1024 && repeats >= 1, "threads and repeats ≥ 1");
            const Kernels &k = isa.empty() ? kernels_or_throw() : kernels_named(isa);
            const nb::gil_scoped_release release;
            return dram_read_gb_per_s(k, threads, repeats);
        },
        "threads"_a, "repeats"_a = 7, "isa"_a = "",
        "Median rate of reading 512 MB once, in GB/s (10^9).");
    m.def(
        "int8_gmac_per_s",
        [](int threads, int repeats, const std::string &isa) {
            require(threads >= 1 && threads <= 1024 && repeats >= 1, "threads and repeats ≥ 1");
            const Kernels &k = isa.empty() ? kernels_or_throw() : kernels_named(isa);
            const nb::gil_scoped_release release;
            return int8_gmac_per_s(k, threads, repeats);
        },
        "threads"_a, "repeats"_a = 7, "isa"_a = "",
        "Median rate of u8 × s8 multiply-adds from registers, in 10^9 a second.");
    m.def("linear_seconds", &kernel_linear_seconds, "isa"_a, "rows"_a, "columns"_a, "tokens"_a,
          "threads"_a = 1, "repeats"_a = 7, "places"_a = kTwoBit,
          "Seconds of one product with a ternary matrix that comes from memory, `repeats` times.");
    m.def("screen_seconds", &kernel_screen_seconds, "isa"_a, "rows"_a, "columns"_a, "tokens"_a,
          "threads"_a = 1, "repeats"_a = 7,
          "Seconds of one pass over a head's screen that comes from memory, `repeats` times.");
    m.def("kernel_linear", &kernel_linear, "isa"_a, "packed"_a, "rows"_a, "columns"_a, "x"_a,
          "threads"_a = 1, "places"_a = kTwoBit,
          "Integer products [tokens, rows] of one kernel, as float32.");
    m.def("kernel_linear_groups", &kernel_linear_groups, "isa"_a, "packed"_a, "scales"_a, "rows"_a,
          "columns"_a, "x"_a, "threads"_a = 1,
          "Products [tokens, rows] of one kernel with scales [rows, blocks], of float32 x.");
    m.def("kernel_norm_quantise", &kernel_norm_quantise, "isa"_a, "x"_a, "gain"_a, "eps"_a,
          "(codes, scale, sum of codes) of one token.");

    nb::class_<Sampler>(m, "Sampler", "Chooses the tokens of one sequence.")
        .def(
            "__init__",
            [](Sampler *self, float temperature, int top_k, float top_p, float min_p,
               float repetition_penalty, float frequency_penalty, float presence_penalty,
               std::uint64_t seed, const std::map<std::int32_t, float> &logit_bias) {
                new (self) Sampler({temperature,
                                    top_k,
                                    top_p,
                                    min_p,
                                    repetition_penalty,
                                    frequency_penalty,
                                    presence_penalty,
                                    seed,
                                    {logit_bias.begin(), logit_bias.end()}});
            },
            "temperature"_a = 1.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
            "repetition_penalty"_a = 1.0f, "frequency_penalty"_a = 0.0f,
            "presence_penalty"_a = 0.0f, "seed"_a = 0,
            "logit_bias"_a = std::map<std::int32_t, float>{})
        .def(
            "observe", [](Sampler &s, const Ids &ids) { s.observe(span_of(ids)); }, "ids"_a,
            "Prompt tokens (int32), for the repetition penalty.")
        .def("accept", &Sampler::accept, "id"_a, "A token generated elsewhere.")
        .def(
            "sample",
            [](Sampler &s, const Floats &logits) {
                std::vector<float> copy(logits.data(), logits.data() + logits.size());
                require(!copy.empty(), "no logits");
                return s.sample(kernels_or_throw(), copy.data(), static_cast<int>(copy.size()));
            },
            "logits"_a, "Choose from float32 logits [vocab], and accept the choice.");

    nb::class_<PyDecoder>(m, "Decoder", "A decoder of a ternary model over borrowed weights.")
        .def(nb::init<const nb::dict &, const nb::dict &, const Floats &, int, int, int,
                      const std::string &, const nb::dict &, int>(),
             "config"_a, "tensors"_a, "inv_freq"_a, "threads"_a, "max_batch_tokens"_a,
             "kv_blocks"_a, "kv_dtype"_a = "f16", "files"_a = nb::dict(), "places"_a = kTwoBit,
             "files: by a float table's name, an open file and where in it the table begins; rows "
             "are then read from there. places: codes of a byte of ternary weights.")
        .def("forward", &PyDecoder::forward, "token_ids"_a, "positions"_a, "sequence"_a,
             "block_tables"_a, "output_rows"_a,
             "Run a flat batch; all arrays int32. Sequence tokens are contiguous, in order.")
        .def("logits", &PyDecoder::logits, "float32 [output rows, vocab] of the last forward.")
        .def("hidden", &PyDecoder::hidden,
             "float32 [output rows, hidden]: what the head multiplies, after the final norm.")
        .def("sample", &PyDecoder::sample, "samplers"_a,
             "One token id for each output row of the last forward.")
        .def("verify", &PyDecoder::verify, "samplers"_a, "drafts"_a,
             "Tokens that follow in each sequence, whose output rows are of its last token and of "
             "its draft's: the draft as far as the sampler chooses the same, and one more.")
        .def_prop_ro("threads", [](const PyDecoder &d) { return d.decoder->threads(); })
        .def_prop_ro(
            "screened_tokens",
            [](const PyDecoder &d) { return d.decoder->head().screened_tokens(); },
            "Tokens chosen from a few rows of the head, so far.")
        .def_prop_ro(
            "rescored_rows", [](const PyDecoder &d) { return d.decoder->head().rescored_rows(); },
            "Rows of the head computed exactly for them.")
        .def_prop_ro(
            "full_passes", [](const PyDecoder &d) { return d.decoder->head().full_passes(); },
            "Passes over all of a head whose rows are otherwise read from a file, so far.")
        .def_prop_ro("kv_bytes", [](const PyDecoder &d) { return d.decoder->kv_bytes(); })
        .def_prop_ro_static("BLOCK", [](nb::handle) { return kKvBlock; });
}
