#include "model.h"

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <utility>

namespace trilobit {
namespace {

struct Tensors {
    nb::dict dict;
    nb::dict files; // name: (open file, offset) of tables whose rows are read from there
    std::vector<Any> *kept;
    Layout layout;         // of ternary matrices
    std::string scales_by; // tensor, row or group
    bool projection_norms;

    Any get(const std::string &name) const {
        require(dict.contains(name.c_str()), "tensor '", name, "' is missing");
        Any array = nb::cast<Any>(dict[name.c_str()]);
        kept->push_back(array);
        return array;
    }

    const float *floats(const std::string &name, std::size_t size) const {
        const Any array = get(name);
        require(array.dtype() == nb::dtype<float>() && array.size() == size, "tensor '", name,
                "' is not float32 of ", size, " elements");
        return static_cast<const float *>(array.data());
    }

    // alone: the order of a matrix whose shape has lines, [lines, bytes].
    Ternary ternary(const std::string &name, int rows, int columns,
                    Order alone = Order::groups) const {
        const Any array = get(name + ".weight");
        const Order order = array.ndim() == 2 ? alone : Order::groups;
        Ternary t{nullptr, nullptr, 0, rows, columns, layout, {}, order};
        const std::string scales = name + ".weight_scale";
        if (scales_by == "group") {
            require(t.scale_groups() <= 1 << 12, "tensor '", name,
                    "' has more than 4096 groups a row");
            t.group_scales = dense(scales, rows, t.scale_groups());
        } else {
            t.scale_step = scales_by == "row";
            t.scales = floats(scales, t.scale_step ? static_cast<std::size_t>(rows) : 1);
        }
        require(array.dtype() == nb::dtype<std::uint8_t>() && array.size() == t.bytes(), "tensor '",
                name, ".weight' is not ", t.bytes(), " packed bytes");
        t.packed = static_cast<const std::uint8_t *>(array.data());
        return t;
    }

    Projection projection(const std::string &name, int rows, int columns,
                          Order alone = Order::groups) const {
        return {ternary(name, rows, columns, alone),
                optional(projection_norms, name + ".rms_norm.weight", columns),
                adapter(name, rows, columns)};
    }

    // Of a matrix that has one. See formats/adapter.py.
    Adapter adapter(const std::string &name, int rows, int columns) const {
        const std::string a = name + ".adapter_a", b = name + ".adapter_b";
        if (!dict.contains(a.c_str())) return {};
        require(!projection_norms, "'", name, "' has a norm of its own, and an adapter");
        const Any down = get(a);
        require(down.ndim() == 2 && down.shape(0) >= kFloatPad && down.shape(0) % kFloatPad == 0 &&
                    down.shape(0) <= 1 << 16,
                "tensor '", a, "' has no rank that is a multiple of ", kFloatPad);
        const int rank = static_cast<int>(down.shape(0));
        const Adapter made{dense(a, rank, columns), dense(b, rows, rank)};
        require(made.a.type == Float::f32 && made.b.type == Float::f32, "the adapter of '", name,
                "' is not float32");
        return made;
    }

    const float *optional(bool there, const std::string &name, int size) const {
        return there ? floats(name, static_cast<std::size_t>(size)) : nullptr;
    }

    Dense dense(const std::string &name, int rows, int columns) const {
        const Any array = get(name);
        require(array.size() == static_cast<std::size_t>(rows) * columns, "tensor '", name,
                "' is not [", rows, ", ", columns, "]");
        const nb::dlpack::dtype type = array.dtype();
        Float kind = Float::f32;
        if (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) &&
            type.bits == 16)
            kind = Float::f16;
        else if (type == nb::dtype<std::uint16_t>())
            kind = Float::bf16;
        else
            require(type == nb::dtype<float>(), "tensor '", name,
                    "' is not float32, float16 or bfloat16 (as uint16)");
        return {array.data(), kind, rows, columns};
    }

    DenseTable table(const std::string &name, int rows, int columns) const {
        DenseTable t{dense(name, rows, columns)};
        if (!files.contains(name.c_str())) return t;
        const auto [file, offset] =
            nb::cast<std::pair<nb::object, std::int64_t>>(files[name.c_str()]);
        t.file = nb::cast<int>(file.attr("fileno")());
        t.offset = offset;
        require(t.file >= 0 && offset >= 0, "the place of '", name, "' is negative");
        return t;
    }
};

// The screen of a head, if there is one.
Screen read_screen(const Tensors &t, int rows, int columns) {
    if (!t.dict.contains("lm_head.screen.coarse.codes")) return {};
    const int padded = round_up(columns, kScreenPad);
    const auto plane = [&](const std::string &name, Order order) {
        const auto of_rows = [&](const char *part) {
            return t.floats(name + part, static_cast<std::size_t>(rows));
        };
        Ternary matrix{nullptr, nullptr, 1, rows, padded, Layout::two_bit, Dense{}, order};
        const Any codes = t.get(name + ".codes");
        require(codes.dtype() == nb::dtype<std::uint8_t>() && codes.size() == matrix.bytes(),
                "tensor '", name, ".codes' is not ", matrix.bytes(), " bytes");
        matrix.packed = static_cast<const std::uint8_t *>(codes.data());
        matrix.scales = of_rows(".scales");
        return Plane{matrix, of_rows(".residuals")};
    };
    return {plane("lm_head.screen.coarse", Order::groups),
            plane("lm_head.screen.fine", Order::rows), std::min(padded & -padded, 512)};
}

int positive(const nb::dict &config, const char *name) {
    require(config.contains(name), "config: ", name, " is missing");
    const int value = nb::cast<int>(config[name]);
    require(value >= 1 && value <= 1 << 24, "config: ", name, " must be 1 to 2^24");
    return value;
}

template <typename T> T value_of(const nb::dict &config, const char *name) {
    require(config.contains(name), "config: ", name, " is missing");
    return nb::cast<T>(config[name]);
}

// The value, or `otherwise` where it is None.
template <typename T> T value_or(const nb::dict &config, const char *name, T otherwise) {
    require(config.contains(name), "config: ", name, " is missing");
    const nb::object value = config[name];
    return value.is_none() ? otherwise : nb::cast<T>(value);
}

Activation read_activation(const std::string &name) {
    if (name == "relu2") return Activation::relu2;
    if (name == "silu") return Activation::silu;
    require(name == "gelu_pytorch_tanh", "config: hidden_act '", name, "' is unknown");
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
    require(c.head_dim % 2 == 0 && c.head_dim <= kMaxHeadDim,
            "config: head_dim must be even, ≤ 1024");
    require(c.num_attention_heads <= 1 << 16, "config: num_attention_heads must be 1 to 2^16");
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
        const bool skips = c.hidden_act == Activation::relu2 && t.scales_by != "group";
        l.up_proj = t.projection(mlp + "up_proj", f, h, skips ? Order::rows : Order::groups);
        l.down_proj = t.projection(mlp + "down_proj", h, f, skips ? Order::columns : Order::groups);
        const Layer &first = n == 0 ? l : w.layers[0];
        require(
            (l.up_proj.weight.order == Order::rows) ==
                    (l.down_proj.weight.order == Order::columns) &&
                l.up_proj.weight.order == first.up_proj.weight.order,
            "up_proj and down_proj lie in groups in some layers, in rows and columns in others");
        l.sliding = !types.empty() && types[static_cast<std::size_t>(n)] == "sliding_attention";
        require(!l.sliding || c.sliding_window > 0, "config: sliding_window must be positive");
        w.layers.push_back(l);
    }
    return w;
}

} // namespace

Model read_model(const nb::dict &config, const nb::dict &tensors, const Floats &inv_freq,
                 const nb::dict &files, Layout layout) {
    const Config c = read_config(config);
    const std::string scales = value_of<std::string>(config, "scales");
    const bool projection_norms = !config["projection_norm_eps"].is_none();
    require(!projection_norms || scales != "group",
            "config: projection norms with scales by group are not supported");
    require(layout == Layout::two_bit || scales != "group",
            "scales by group need the 2-bit layout of weights");
    const bool local = value_or(config, "rope_local_base_freq", 0.0f) > 0;
    const std::size_t half = static_cast<std::size_t>(c.head_dim) / 2;
    require(inv_freq.size() == (local ? 2 : 1) * half,
            "inv_freq must have head_dim / 2 elements, twice that with rope_local_base_freq");
    std::vector<Any> arrays;
    Weights w =
        read_weights(c, config, {tensors, files, &arrays, layout, scales, projection_norms});
    w.inv_freq = inv_freq.data();
    if (local) w.local_inv_freq = inv_freq.data() + half;
    return {c, std::move(w), std::move(arrays)};
}

} // namespace trilobit
