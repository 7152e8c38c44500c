"""The shape of a model: frozen and checked once.

Field names are Hugging Face's wherever it has one. `formats/hf/config.py` reads a `config.json`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trilobit.errors import FormatError
from trilobit.model.rope import RopeScaling, YarnScaling, scaling_from_dict, scaling_to_dict

# The largest values that any published ternary model comes near; beyond them a header lies.
_LIMITS = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_position_embeddings": 1 << 24,
}
# Beyond these, float32 arithmetic over- or underflows.
_EPS = (1e-12, 1.0)
_THETA = (1.0, 1e12)
_RANGES = {"rms_norm_eps": _EPS, "rope_theta": _THETA, "embedding_scale": (1e-6, 1e6)}
_OPTIONAL_RANGES = {
    "projection_norm_eps": _EPS,
    "rope_local_base_freq": _THETA,
    "query_pre_attn_scalar": (1e-6, 1e6),
}
_FLAGS = ("tie_word_embeddings", "sub_norms", "qk_norms", "post_norms", "ternary_embeddings")
_TOKEN_IDS = 1 << 31  # they are 32-bit integers in the native code

ACTIVATIONS = ("relu2", "silu", "gelu_pytorch_tanh")
SCALES = ("tensor", "row", "group")
LAYER_TYPES = ("full_attention", "sliding_attention")

Scales = Literal["tensor", "row", "group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder with RMSNorm, GQA, RoPE, a gated MLP, ternary projections and no biases.

    The defaults are BitNet b1.58 2B4T's; every other value is there for a published model.
    Raises FormatError when a value is impossible (negative, not divisible, out of range).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    hidden_act: str = "relu2"
    # Norms. Of the attention's and of the MLP's result before the last projection (BitNet):
    sub_norms: bool = True
    # of every query and key head, before it is rotated (Qwen3, Gemma3):
    qk_norms: bool = False
    # of the attention's and of the MLP's output before it is added (Gemma3):
    post_norms: bool = False
    # of each projection's own input (BitNet-embedding, `use_rms_norm`); None where there are none.
    projection_norm_eps: float | None = None
    embedding_scale: float = 1.0
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_dim
    rope_scaling: RopeScaling | None = None
    # Layers of type sliding_attention see the last `sliding_window` positions, their own included,
    # and turn by `rope_local_base_freq`, unscaled, where that is given. Empty: all see everything.
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    rope_local_base_freq: float | None = None
    # A weight scale for a matrix, for a row, or for 128 columns of a row. Activations are rounded
    # to int8 by token (BitNet), but to int16 by 128 columns where scales are by group: those
    # models are trained with float activations.
    scales: Scales = "tensor"
    ternary_embeddings: bool = False  # embedding and head are ternary too, scaled alike

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            self._check_integer(name, limit)
        if self.num_attention_heads % self.num_key_value_heads:
            raise FormatError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise FormatError(f"config: head_dim {self.head_dim} is odd; RoPE rotates pairs")
        for name, bounds in _RANGES.items():
            self._check_number(name, bounds)
        for name, bounds in _OPTIONAL_RANGES.items():
            if getattr(self, name) is not None:
                self._check_number(name, bounds)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise FormatError(
                    f"config: {name} is {_shown(getattr(self, name))}; expected true or false"
                )
        for name, known in (("hidden_act", ACTIVATIONS), ("scales", SCALES)):
            if getattr(self, name) not in known:
                raise FormatError(
                    f"config: {name} is {_shown(getattr(self, name))}; "
                    f"expected one of {', '.join(known)}"
                )
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta == 1:
            raise FormatError("config: rope_theta is 1.0, which YaRN cannot scale")
        if self.scales != "group" and self.ternary_embeddings:
            raise FormatError("config: ternary_embeddings is true, but scales are not by group")
        if self.scales == "group" and self.projection_norm_eps is not None:
            raise FormatError("config: projection_norm_eps is given, but scales are by group")
        self._check_layer_types()
        # Sound files exist whose end-of-sequence ids lie outside a shrunken vocabulary; they can
        # never be produced, so they are kept, not refused.
        if self.bos_token_id is not None and not _is_token_id(self.bos_token_id):
            raise FormatError(
                f"config: bos_token_id is {_shown(self.bos_token_id)}; expected a token id"
            )
        if not isinstance(self.eos_token_ids, tuple) or not all(
            map(_is_token_id, self.eos_token_ids)
        ):
            raise FormatError(
                f"config: eos_token_ids is {_shown(self.eos_token_ids)}; expected token ids"
            )

    def _check_integer(self, name: str, limit: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise FormatError(f"config: {name} is {_shown(value)}; expected 1 to {limit}")

    def _check_number(self, name: str, bounds: tuple[float, float]) -> None:
        value, (least, most) = getattr(self, name), bounds
        if not isinstance(value, float) or not least <= value <= most:  # NaN is in no range
            raise FormatError(
                f"config: {name} is {_shown(value)}; expected a number from {least:g} to {most:g}"
            )

    def _check_layer_types(self) -> None:
        types = self.layer_types
        known = isinstance(types, tuple) and all(one in LAYER_TYPES for one in types)
        if not known or len(types) not in (0, self.num_hidden_layers):
            raise FormatError(
                f"config: layer_types is {_shown(types)}; expected {self.num_hidden_layers} of "
                f"{' and '.join(LAYER_TYPES)}"
            )
        slides = "sliding_attention" in types
        if self.sliding_window is not None:
            self._check_integer("sliding_window", _LIMITS["max_position_embeddings"])
        for name in ("sliding_window", "rope_local_base_freq"):
            if getattr(self, name) is not None and not slides:
                raise FormatError(f"config: {name} is given, but layer_types has no sliding layer")
        if slides and self.sliding_window is None:
            raise FormatError(
                "config: sliding_window is missing, but layer_types has sliding layers"
            )

    @property
    def model_type(self) -> str:
        """Hugging Face's name of the architecture."""
        if self.post_norms:
            return "gemma3_text"
        if self.qk_norms:
            return "qwen3"
        return "bitnet" if self.sub_norms else "llama"

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads, together."""
        return self.num_key_value_heads * self.head_dim

    def slides(self, layer: int) -> bool:
        """Whether a layer sees the last `sliding_window` positions only."""
        return bool(self.layer_types) and self.layer_types[layer] == "sliding_attention"

    @property
    def ternary_parameters(self) -> int:
        """Weights of all ternary matrices."""
        h, f = self.hidden_size, self.intermediate_size
        layers = self.num_hidden_layers * (
            2 * h * self.query_size + 2 * h * self.kv_size + 3 * h * f
        )
        return layers + (self._table_parameters if self.ternary_embeddings else 0)

    @property
    def parameters(self) -> int:
        """All weights: ternary matrices, norms, embedding and (untied) head."""
        tables = 0 if self.ternary_embeddings else self._table_parameters
        return self.ternary_parameters + self._norm_parameters + tables

    @property
    def _table_parameters(self) -> int:
        return (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size

    @property
    def _norm_parameters(self) -> int:
        h, f, q = self.hidden_size, self.intermediate_size, self.query_size
        layer = (4 if self.post_norms else 2) * h
        layer += q + f if self.sub_norms else 0
        layer += 2 * self.head_dim if self.qk_norms else 0
        layer += 5 * h + q + f if self.projection_norm_eps is not None else 0
        return self.num_hidden_layers * layer + h

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; FormatError names unknown and missing fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(raw) != names:
            wrong = sorted(map(str, set(raw) ^ names))
            raise FormatError(f"config: missing or unknown fields: {_shown(wrong)}")
        values = dict(raw)
        values["eos_token_ids"] = token_ids(values["eos_token_ids"])
        if isinstance(values["layer_types"], list):
            values["layer_types"] = tuple(values["layer_types"])
        for name in _RANGES:
            values[name] = number(values[name], name)
        for name in _OPTIONAL_RANGES:
            if values[name] is not None:
                values[name] = number(values[name], name)
        scaling = values["rope_scaling"]
        if scaling is not None:
            if not isinstance(scaling, Mapping):
                raise FormatError(f"config: rope_scaling is {_shown(scaling)}; expected an object")
            values["rope_scaling"] = scaling_from_dict(scaling)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["eos_token_ids"] = list(self.eos_token_ids)
        values["layer_types"] = list(self.layer_types)
        if self.rope_scaling is not None:
            values["rope_scaling"] = scaling_to_dict(self.rope_scaling)
        return values


def number(value: Any, name: str) -> float:
    """A number from a file as a float; FormatError names the field of anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FormatError(f"config: {name} is {_shown(value)}; expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def token_ids(value: Any) -> tuple[Any, ...]:
    """One id, several or none, as a tuple; what is in it is checked with the other fields."""
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOKEN_IDS


def _shown(value: object) -> str:
    """A value from a file as it may stand in a message: one short line."""
    return reprlib.repr(value)
