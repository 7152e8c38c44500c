"""A model's shape as GGUF's keys: the way back of `config`."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import UnsupportedModel
from trilobit.formats.gguf import types, values
from trilobit.formats.gguf.config import ARCHITECTURES, GEMMA3_PATTERN, OWN_FACTS, Architecture
from trilobit.model.config import ModelConfig
from trilobit.model.rope import (
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    frequencies,
    scaling_to_dict,
)

# llama.cpp's and bitnet.cpp's numbers of the types that most tensors have.
_FILE_TYPES = {types.I2_S: 40, types.TQ1_0: 36, types.TQ2_0: 37}
_QUANTIZATION_VERSION = 2  # of the layout of ggml's blocks


def architecture_name(config: ModelConfig) -> str:
    """What llama.cpp calls a model of this shape; UnsupportedModel where it has no name."""
    for name, kind in ARCHITECTURES.items():
        if name != "bitnet-25" and _is(kind, config):
            return name
    raise UnsupportedModel(
        f"no architecture of GGUF is a {config.model_type} with {config.hidden_act}; "
        "write another form"
    )


def architecture_of(config: ModelConfig) -> Architecture:
    """What that name means."""
    return ARCHITECTURES[architecture_name(config)]


def _is(kind: Architecture, config: ModelConfig) -> bool:
    return (kind.hidden_act, kind.sub_norms, kind.qk_norms, kind.gemma) == (
        config.hidden_act,
        config.sub_norms,
        config.qk_norms,
        config.post_norms,
    )


def config_keys(config: ModelConfig, label: str, ternary: int) -> list[bytes]:
    """Keys of a shape, `label` for people, and the type of most tensors."""
    name = architecture_name(config)
    integers: dict[str, int] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }
    floats: dict[str, float] = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    texts: dict[str, str] = {}
    more: list[bytes] = []
    if config.sliding_window is not None:
        integers["attention.sliding_window"] = config.sliding_window
        key = f"{name}.attention.sliding_window_pattern"
        more.append(values.pair(key, _pattern(config.layer_types)))
        if config.rope_local_base_freq is not None:
            floats["rope.freq_base_swa"] = config.rope_local_base_freq
    scaling = config.rope_scaling
    if isinstance(scaling, (LinearScaling, YarnScaling)):
        floats["rope.scaling.factor"] = scaling.factor
        texts["rope.scaling.type"] = "linear" if isinstance(scaling, LinearScaling) else "yarn"
    if isinstance(scaling, YarnScaling):
        plain = YarnScaling.default_attention_factor(scaling.factor)
        integers["rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
        floats["rope.scaling.attn_factor"] = scaling.attention_factor / plain
        floats["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        floats["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
    # Ends beyond three and the numbers behind rope_freqs have no keys; others skip this one.
    own = {
        "eos_token_ids": [i for i in config.eos_token_ids if i < config.vocab_size],
        "rope_scaling": scaling_to_dict(scaling) if isinstance(scaling, Llama3Scaling) else None,
    }
    return [
        values.pair("general.architecture", values.text(name)),
        values.pair("general.name", values.text(label)),
        values.pair("general.file_type", values.u32(_FILE_TYPES[ternary])),
        values.pair("general.quantization_version", values.u32(_QUANTIZATION_VERSION)),
        *(values.pair(f"{name}.{key}", values.u32(value)) for key, value in integers.items()),
        *(values.pair(f"{name}.{key}", values.f32(value)) for key, value in floats.items()),
        *(values.pair(f"{name}.{key}", values.text(value)) for key, value in texts.items()),
        *more,
        values.pair(OWN_FACTS, values.text(json.dumps(own))),
    ]


def _pattern(layer_types: tuple[str, ...]) -> bytes:
    """The period of the layers that see everything, which is all that llama.cpp's Gemma 3 knows.

    Where there is none, what every layer does.
    """
    slides = [kind == "sliding_attention" for kind in layer_types]
    for period in (GEMMA3_PATTERN, *range(1, len(slides) + 1)):
        if slides == [(layer + 1) % period != 0 for layer in range(len(slides))]:
            return values.u32(period)
    return values.booleans(slides)


def rope_factors(config: ModelConfig) -> NDArray[np.float32] | None:
    """Llama 3's scaling as llama.cpp reads it: what the angles of each pair are divided by."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return None
    plain = frequencies(config.head_dim, config.rope_theta)
    factors: NDArray[np.float32] = plain / config.rope_scaling.apply(plain, config.rope_theta)
    return factors.astype(np.float32)
