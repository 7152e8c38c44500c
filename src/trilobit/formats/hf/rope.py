"""What a Hugging Face `config.json` says of rotary position embedding, old way and new.

transformers 4 has `rope_theta` and `rope_scaling`, 5 has them in `rope_parameters`; Gemma3 has them
for each type of layer.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.model.config import number
from trilobit.model.rope import SCALINGS, RopeScaling, YarnScaling, scaling_from_dict


def read_rope(
    values: Mapping[str, Any], gemma: bool
) -> tuple[float, RopeScaling | None, float | None]:
    """theta, how it is scaled, and theta of sliding layers (Gemma3).

    Raises UnsupportedModel for another kind of scaling, FormatError for impossible values.
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise FormatError(f"config: rope_parameters is {_shown(rope)}; expected an object")
    if not gemma:
        return (*_rope_of(rope, values, values["rope_theta"], "rope_theta"), None)
    by_type = rope if "full_attention" in rope or "sliding_attention" in rope else {}
    full = by_type.get("full_attention") or ({} if by_type else rope)
    local = by_type.get("sliding_attention") or {}
    theta, scaling = _rope_of(full, values, values["rope_theta"], "rope_theta")
    name = "rope_local_base_freq"
    local_theta, local_scaling = _rope_of(local, values, values[name], name)
    if local_scaling is not None:
        raise UnsupportedModel("config: scaled RoPE of sliding layers is not supported")
    return theta, scaling, local_theta


def _rope_of(
    rope: Any, values: Mapping[str, Any], theta: Any, name: str
) -> tuple[float, RopeScaling | None]:
    if not isinstance(rope, Mapping):
        raise FormatError(f"config: rope_parameters is {_shown(rope)}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = number(rope.get("rope_theta", theta), name)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel("config: partial_rotary_factor is not supported")
    if kind == "default":
        return base, None
    if kind not in SCALINGS:
        raise UnsupportedModel(
            f"config: rope_type {_shown(kind)} is not supported; "
            f"supported: default, {', '.join(SCALINGS)}"
        )
    try:
        return base, _SCALING[kind](rope, values)
    except FormatError as error:
        raise FormatError(f"config: {error}") from None


def _linear(rope: Mapping[str, Any], values: Mapping[str, Any]) -> RopeScaling:
    return scaling_from_dict({"rope_type": "linear", "factor": rope.get("factor")})


def _llama3(rope: Mapping[str, Any], values: Mapping[str, Any]) -> RopeScaling:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    return scaling_from_dict(
        {
            "rope_type": "llama3",
            **{name: rope.get(name) for name in names},
            "original_max_position_embeddings": _original_context(rope, values),
        }
    )


def _yarn(rope: Mapping[str, Any], values: Mapping[str, Any]) -> RopeScaling:
    for name in ("mscale", "mscale_all_dim"):
        if rope.get(name):
            raise UnsupportedModel(f"config: rope_scaling with {name} is not supported")
    if rope.get("truncate", True) is not True:
        raise UnsupportedModel("config: rope_scaling without truncate is not supported")
    factor = rope.get("factor")
    if isinstance(factor, (int, float)) and rope.get("attention_factor") is None:
        attention = YarnScaling.default_attention_factor(factor)
    else:
        attention = rope.get("attention_factor", 1.0)
    return scaling_from_dict(
        {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": _original_context(rope, values),
            "attention_factor": attention,
            "beta_fast": rope.get("beta_fast") or 32.0,
            "beta_slow": rope.get("beta_slow") or 1.0,
        }
    )


_SCALING = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}


def _original_context(rope: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    name = "original_max_position_embeddings"
    return rope.get(name) or values.get(name) or values["max_position_embeddings"]


def _shown(value: object) -> str:
    return reprlib.repr(value)
