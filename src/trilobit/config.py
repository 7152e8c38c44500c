"""The shape of a model: frozen, checked once, read from any supported `config.json`.

Field names are Hugging Face's. What a checkpoint leaves out takes the default of its
architecture's class in transformers, not ours.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FormatError, UnsupportedModel

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
_RANGES = {"rms_norm_eps": (1e-12, 1.0), "rope_theta": (1.0, 1e12)}
_TOKEN_IDS = 1 << 31  # they are 32-bit integers in the native code

# transformers' BitNetConfig, for keys that a config.json leaves out.
_BITNET_DEFAULTS: dict[str, Any] = {
    "hidden_act": "relu2",
    "num_key_value_heads": 5,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "rope_theta": 500000.0,
}
# Keys whose null means something: as many as heads, none. Elsewhere it means left out.
_NULLABLE = ("num_key_value_heads", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A BitNet b1.58 decoder: RMSNorm, GQA with RoPE, relu² gated MLP, sub-norms, no biases.

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

    def __post_init__(self) -> None:
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
                raise FormatError(f"config: {name} is {_shown(value)}; expected 1 to {limit}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise FormatError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise FormatError(f"config: head_dim {self.head_dim} is odd; RoPE rotates pairs")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, float) or not least <= value <= most:  # NaN is in no range
                raise FormatError(
                    f"config: {name} is {_shown(value)}; "
                    f"expected a number from {least:g} to {most:g}"
                )
        if not isinstance(self.tie_word_embeddings, bool):
            raise FormatError(
                f"config: tie_word_embeddings is {_shown(self.tie_word_embeddings)}; "
                "expected true or false"
            )
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

    @property
    def ternary_parameters(self) -> int:
        """Weights of all ternary projections."""
        h, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * (2 * h * q + 2 * h * kv + 3 * h * f)

    @property
    def parameters(self) -> int:
        """All weights: ternary projections, norms, embedding and (untied) head."""
        h = self.hidden_size
        norms = (
            self.num_hidden_layers
            * (2 * h + self.num_attention_heads * self.head_dim + self.intermediate_size)
            + h
        )
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * h
        return self.ternary_parameters + norms + tables

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str) -> ModelConfig:
        """Read a Hugging Face `config.json` (transformers 4 or 5).

        Raises UnsupportedModel for another architecture, FormatError for missing or impossible
        values; `source` names the file in the message.
        """
        model_type = raw.get("model_type")
        if model_type != "bitnet":
            raise UnsupportedModel(
                f"{source}: model_type {_shown(model_type)} is not supported; supported: 'bitnet'"
            )
        given = {k: v for k, v in raw.items() if v is not None or k in _NULLABLE}
        values = {**_BITNET_DEFAULTS, **given}
        missing = [
            k
            for k in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
            if k not in values
        ]
        if missing:
            raise FormatError(f"{source}: {', '.join(missing)} missing; is this a model config?")
        if values["hidden_act"] != "relu2":
            raise UnsupportedModel(
                f"{source}: hidden_act {_shown(values['hidden_act'])} is not supported for bitnet; "
                "supported: 'relu2'"
            )
        for bias in ("attention_bias", "mlp_bias"):
            if values.get(bias):
                raise UnsupportedModel(f"{source}: {bias} is true; BitNet has no biases")
        heads = values["num_attention_heads"]
        kv_heads = values["num_key_value_heads"]
        hidden = values["hidden_size"]
        head_dim = values.get("head_dim")
        if head_dim is None:
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
            head_dim = hidden // heads
        try:
            return cls(
                vocab_size=values["vocab_size"],
                hidden_size=hidden,
                intermediate_size=values["intermediate_size"],
                num_hidden_layers=values["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=heads if kv_heads is None else kv_heads,
                head_dim=head_dim,
                max_position_embeddings=values["max_position_embeddings"],
                rms_norm_eps=_number(values["rms_norm_eps"], "rms_norm_eps"),
                rope_theta=_rope_theta(values),
                tie_word_embeddings=values["tie_word_embeddings"],
                bos_token_id=values["bos_token_id"],
                eos_token_ids=_token_ids(values["eos_token_id"]),
            )
        except (FormatError, UnsupportedModel) as error:
            raise type(error)(f"{source}: {error}") from None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; FormatError names unknown and missing fields."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(raw) != names:
            wrong = sorted(set(raw) ^ names)
            raise FormatError(f"config: missing or unknown fields: {_shown(wrong)}")
        values = dict(raw)
        values["eos_token_ids"] = _token_ids(values["eos_token_ids"])
        for name in ("rms_norm_eps", "rope_theta"):
            values[name] = _number(values[name], name)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in field order."""
        values = dataclasses.asdict(self)
        values["eos_token_ids"] = list(self.eos_token_ids)
        return values


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FormatError(f"config: {name} is {_shown(value)}; expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _rope_theta(values: Mapping[str, Any]) -> float:
    """transformers 5 moved `rope_theta` into `rope_parameters` (4: `rope_scaling` beside it)."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise FormatError(f"config: rope_parameters is {_shown(rope)}; expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedModel(
            f"config: rope_type {_shown(kind)} is not supported for bitnet; supported: 'default'"
        )
    return _number(rope.get("rope_theta", values["rope_theta"]), "rope_theta")


def _token_ids(value: Any) -> tuple[Any, ...]:
    """One id, several or none, as a tuple; what is in it is checked with the other fields."""
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOKEN_IDS


def _shown(value: object) -> str:
    """A value from a file as it may stand in a message: one short line."""
    return reprlib.repr(value)
