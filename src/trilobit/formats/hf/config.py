"""A Hugging Face `config.json` -> `ModelConfig` and back, for every architecture that we run.

What a file leaves out takes the default of its architecture's class in transformers, not ours.
Both generations are read: transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.hf.rope import read_rope
from trilobit.model.config import ACTIVATIONS, ModelConfig, number, token_ids
from trilobit.model.rope import scaling_to_dict

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Of transformers' config classes, for keys that a config.json leaves out.
_LLAMA: dict[str, Any] = {
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 10000.0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bitnet": {
        "hidden_act": "relu2",
        "num_key_value_heads": 5,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "rope_theta": 500000.0,
    },
    "llama": _LLAMA,
    "qwen3": {
        **_LLAMA,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "bos_token_id": None,
        "eos_token_id": None,
        "max_window_layers": 28,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        "hidden_act": "gelu_pytorch_tanh",
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
}
# Keys whose null means something: as many as heads, none. Elsewhere it means left out.
_NULLABLE = ("num_key_value_heads", "bos_token_id", "eos_token_id")


def model_config(raw: Mapping[str, Any], source: str) -> ModelConfig:
    """Read a Hugging Face `config.json`; `source` names it in messages.

    Raises UnsupportedModel for what we do not run, FormatError for missing or impossible values.
    """
    family = _family(raw, source)
    given = {k: v for k, v in raw.items() if v is not None or k in _NULLABLE}
    values = {**_DEFAULTS["llama" if family == "1bitLLM" else family], **given}
    missing = [name for name in _SIZES if name not in values]
    if missing:
        raise FormatError(f"{source}: {', '.join(missing)} missing; is this a model config?")
    _refuse(values, family, source)
    try:
        return _read(values, family, source)
    except (FormatError, UnsupportedModel) as error:
        where = "" if str(error).startswith(source) else f"{source}: "
        raise type(error)(f"{where}{error}") from None


def is_one_bit(raw: Mapping[str, Any]) -> bool:
    """Whether a config is 1bitLLM's, whose model_type is llama.

    Microsoft's architecture is BitNetForCausalLM, with a capital N.
    """
    architectures = raw.get("architectures")
    return isinstance(architectures, list) and "BitnetForCausalLM" in architectures


def with_projection_norms(config: ModelConfig, tensors: Iterable[str]) -> ModelConfig:
    """The config of a checkpoint with these tensors.

    BitNet-embedding's config.json does not say that every projection has a norm of its own.
    """
    if not any(name.endswith("_proj.norm.weight") for name in tensors):
        return config
    return replace(config, projection_norm_eps=config.rms_norm_eps)


_ARCHITECTURES = {
    "bitnet": "BitNetForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """What stock transformers needs to know of a model, but for its quantization_config.

    1bitLLM's models become `bitnet` with SiLU, which is the same model.
    """
    family = config.model_type
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        **{name: getattr(config, name) for name in _SIZES},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_activation" if family == "gemma3_text" else "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = scaling_to_dict(config.rope_scaling)
    if config.layer_types:
        values["layer_types"] = list(config.layer_types)
        values["sliding_window"] = config.sliding_window
        values["use_sliding_window"] = True
    if family == "gemma3_text":
        scalar = config.query_pre_attn_scalar or config.head_dim
        values["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        values["rope_local_base_freq"] = config.rope_local_base_freq
    return values


def _family(raw: Mapping[str, Any], source: str) -> str:
    if is_one_bit(raw):
        return "1bitLLM"
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in _DEFAULTS:
        return model_type
    reason = ""
    quantization = raw.get("quantization_config")
    if isinstance(quantization, Mapping) and "variant" in quantization:
        reason = ", float masters of layers that round otherwise than BitNet b1.58,"
    elif isinstance(model_type, str) and model_type.startswith(("qwen3_5", "qwen3_next")):
        reason = ", most of whose layers are gated delta nets (Ternary-Bonsai 27B, Bonsai 2),"
    elif "num_experts" in raw or "num_local_experts" in raw:
        reason = ", a mixture of experts,"
    elif "vision_config" in raw or "audio_config" in raw:
        reason = ", which reads more than text,"
    raise UnsupportedModel(
        f"{source}: model_type {_shown(model_type)}{reason} is not supported; supported: "
        + ", ".join(f"'{name}'" for name in _DEFAULTS)
    )


def _refuse(values: Mapping[str, Any], family: str, source: str) -> None:
    """UnsupportedModel for switches that no published ternary model turns on."""
    for bias in ("attention_bias", "mlp_bias"):
        if values.get(bias):
            raise UnsupportedModel(f"{source}: {bias} is true; biases are not supported")
    for name in (
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if family == "gemma3_text" and values.get(name):
            raise UnsupportedModel(
                f"{source}: {name} is {_shown(values[name])}; only models without it are supported"
            )
    if family == "1bitLLM" and (values.get("weight_bits", 1), values.get("input_bits", 8)) != (
        1,
        8,
    ):
        raise UnsupportedModel(
            f"{source}: weight_bits {_shown(values.get('weight_bits'))} and input_bits "
            f"{_shown(values.get('input_bits'))} are not supported; supported: 1 and 8"
        )
    act = values.get("hidden_activation", values["hidden_act"])
    if act not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{source}: hidden_act {_shown(act)} is not supported; "
            f"supported: {', '.join(ACTIVATIONS)}"
        )


def _read(values: Mapping[str, Any], family: str, source: str) -> ModelConfig:
    gemma = family == "gemma3_text"
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    theta, scaling, local = read_rope(values, gemma)
    types = _layer_types(values, family)
    slides = "sliding_attention" in types
    return ModelConfig(
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=_head_dim(values, source),
        max_position_embeddings=values["max_position_embeddings"],
        rms_norm_eps=number(values["rms_norm_eps"], "rms_norm_eps"),
        rope_theta=theta,
        tie_word_embeddings=values["tie_word_embeddings"],
        bos_token_id=values["bos_token_id"],
        eos_token_ids=token_ids(values["eos_token_id"]),
        hidden_act=values.get("hidden_activation", values["hidden_act"]),
        sub_norms=family in ("bitnet", "1bitLLM"),
        qk_norms=gemma or family == "qwen3",
        post_norms=gemma,
        projection_norm_eps=_projection_norm_eps(values),
        embedding_scale=_embedding_scale(values["hidden_size"]) if gemma else 1.0,
        query_pre_attn_scalar=(
            number(values["query_pre_attn_scalar"], "query_pre_attn_scalar") if gemma else None
        ),
        rope_scaling=scaling,
        layer_types=types if set(types) - {"full_attention"} else (),
        sliding_window=values["sliding_window"] if slides else None,
        rope_local_base_freq=local if slides else None,
    )


def _embedding_scale(hidden: Any) -> float:
    """Gemma's, of a size that is checked with the others."""
    return math.sqrt(hidden) if isinstance(hidden, int) and 0 < hidden < 1 << 32 else 1.0


def _head_dim(values: Mapping[str, Any], source: str) -> Any:
    if values.get("head_dim") is not None:
        return values["head_dim"]
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    for name in ("hidden_size", "num_attention_heads"):
        if not isinstance(values[name], int) or values[name] < 1:
            raise FormatError(
                f"{source}: {name} is {_shown(values[name])}; expected a positive integer"
            )
    if hidden % heads:
        raise FormatError(
            f"{source}: hidden_size {_shown(hidden)} is not a multiple of "
            f"num_attention_heads {_shown(heads)}, and there is no head_dim"
        )
    return hidden // heads


def _projection_norm_eps(values: Mapping[str, Any]) -> float | None:
    """transformers' BitNetQuantConfig has `use_rms_norm`, off unless it is given."""
    quantization = values.get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization.get("use_rms_norm"):
        return None
    return number(quantization.get("rms_norm_eps", 1e-6), "projection_norm_eps")


def _layer_types(values: Mapping[str, Any], family: str) -> tuple[Any, ...]:
    """The type of every layer; empty for families whose layers are all alike."""
    layers = values["num_hidden_layers"]
    if family not in ("qwen3", "gemma3_text") or not isinstance(layers, int):
        return ()
    if family == "qwen3" and not values.get("use_sliding_window"):
        return ()
    types = values.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
            raise FormatError(f"config: layer_types is {_shown(types)}; expected a list of names")
        return tuple(types)
    name = "max_window_layers" if family == "qwen3" else "sliding_window_pattern"
    number_of = values[name]
    if not isinstance(number_of, int) or number_of < 1 - (family == "qwen3"):
        raise FormatError(f"config: {name} is {_shown(number_of)}; expected a number of layers")
    numbers = range(min(layers, 1 << 10))
    if family == "qwen3":
        slides = [layer >= number_of for layer in numbers]
    else:
        slides = [(layer + 1) % number_of != 0 for layer in numbers]
    return tuple("sliding_attention" if one else "full_attention" for one in slides)


def _shown(value: object) -> str:
    """A value from a file as it may stand in a message: one short line."""
    return reprlib.repr(value)
