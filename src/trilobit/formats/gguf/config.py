"""A model's shape in GGUF's keys, and which architecture stands for which.

The names are llama.cpp's and, for `bitnet-25` and `bitnet-b1.58`, bitnet.cpp's. Those two are
Microsoft's models and always have relu², whatever a program once ran them with; `bitnet` is
1bitLLM's, with SiLU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats import json_text
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.float_blocks import PLAIN, dequantise
from trilobit.formats.gguf.header import DAMAGED, shown
from trilobit.formats.gguf.tokenizer import PREFIX, control_tokens, special_id
from trilobit.model.config import ModelConfig
from trilobit.model.rope import (
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    frequencies,
    scaling_from_dict,
)

EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
# Tokens that end a reply, by their text: converters name one end, models have more.
_ENDS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_text|>", "<|endoftext|>")
# Of Llama 3.1 and later: the files hold the factors of the frequencies, not what made them.
_LLAMA3_SCALINGS = tuple(
    Llama3Scaling(
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    for factor in (8.0, 32.0)
)
GEMMA3_PATTERN = 6  # one layer in six sees everything
_GEMMA3_LOCAL_THETA = 10000.0
# Of a file that we wrote: JSON of what GGUF has no keys for, see config_keys.py.
OWN_FACTS = "trilobit.model.config"
_TOLERANCE = 1e-5  # relative, of float32 factors computed by another program


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name alone says of a model."""

    hidden_act: str
    sub_norms: bool = False
    qk_norms: bool = False
    gemma: bool = False
    # llama.cpp rotates neighbours here, so the converters interleave the halves of every head.
    interleaved: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "bitnet": Architecture("silu", sub_norms=True),
    "bitnet-25": Architecture("relu2", sub_norms=True),
    "bitnet-b1.58": Architecture("relu2", sub_norms=True),
    "llama": Architecture("silu", interleaved=True),
    "qwen3": Architecture("silu", qk_norms=True),
    "gemma3": Architecture("gelu_pytorch_tanh", qk_norms=True, gemma=True),
}


def architecture(file: GGUFFile) -> tuple[str, Architecture]:
    """Name and meaning of a file's architecture; UnsupportedModel for one we do not run."""
    name = file.text("general.architecture")
    if name is None:
        raise FormatError(f"{file.path}: 'general.architecture' is missing; is this a model?")
    if name not in ARCHITECTURES:
        hybrid = name.startswith(("qwen35", "qwen3next"))
        reason = ", most of whose layers are gated delta nets," if hybrid else ""
        raise UnsupportedModel(
            f"{file.path}: architecture {shown(name)}{reason} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if (file.integer("split.count") or 1) > 1:
        raise UnsupportedModel(
            f"{file.path}: one of {file.integer('split.count')} parts; join them with llama.cpp's "
            "gguf-split --merge"
        )
    return name, ARCHITECTURES[name]


def read_config(file: GGUFFile, *, ternary_embeddings: bool) -> ModelConfig:
    """The shape of a model, as far as the header tells: with one scale a matrix.

    Whether there are more shows only in the data; ternary embeddings always have them by group.
    Raises FormatError for what is missing, impossible or contradictory.
    """
    name, kind = architecture(file)
    keys = _Keys(file, name)
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = _head_dim(keys, hidden, heads)
    kv_heads = keys.optional_integer("attention.head_count_kv")
    layers = keys.integer("block_count")
    slides = _sliding(keys, layers) if kind.gemma else {}
    eps = keys.number("attention.layer_norm_rms_epsilon")
    theta = file.number(f"{name}.rope.freq_base")
    theta = 10000.0 if theta is None else theta
    try:
        return ModelConfig(
            vocab_size=_vocab_size(file),
            hidden_size=hidden,
            intermediate_size=keys.integer("feed_forward_length"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            max_position_embeddings=keys.integer("context_length"),
            rms_norm_eps=eps,
            rope_theta=theta,
            tie_word_embeddings=HEAD not in file.tensors,
            hidden_act=kind.hidden_act,
            sub_norms=kind.sub_norms,
            qk_norms=kind.qk_norms,
            post_norms=kind.gemma,
            projection_norm_eps=eps if "blk.0.attn_q_norm_in.weight" in file.tensors else None,
            embedding_scale=math.sqrt(hidden) if kind.gemma else 1.0,
            query_pre_attn_scalar=float(head_dim) if kind.gemma else None,
            rope_scaling=_rope_scaling(keys, head_dim, theta),
            scales="group" if ternary_embeddings else "tensor",
            ternary_embeddings=ternary_embeddings,
            **_ends(file),
            **slides,
        )
    except FormatError as error:
        where = "" if str(error).startswith(f"{file.path}: ") else f"{file.path}: "
        raise FormatError(f"{where}{error}") from None


class _Keys:
    """The keys of one architecture, those that must be there by name."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def integer(self, name: str) -> int:
        value = self.optional_integer(name)
        if value is None:
            raise self._missing(name)
        return value

    def optional_integer(self, name: str) -> int | None:
        key = f"{self.architecture}.{name}"
        if self.file.is_array(key):  # one for each layer, in models whose layers differ
            values = self.file.numbers(key)
            if values is None or len(values) == 0 or (values != values[0]).any():
                raise UnsupportedModel(f"{self.file.path}: '{key}' differs from layer to layer")
            if values.dtype.kind not in "iu":
                raise FormatError(f"{self.file.path}: '{key}' is not of integers; {DAMAGED}")
            found: int | None = int(values[0])
        else:
            found = self.file.integer(key)
        if found is not None and not 0 <= found < 1 << 31:
            raise FormatError(f"{self.file.path}: '{key}' is {found}, which cannot be; {DAMAGED}")
        return found

    def number(self, name: str) -> float:
        value = self.file.number(f"{self.architecture}.{name}")
        if value is None:
            raise self._missing(name)
        # A float32 of the converter's decimal number: 1e-5 again, not 9.999999747e-06.
        with np.errstate(over="ignore"):  # infinite is out of every range
            return float(str(np.float32(value)))

    def _missing(self, name: str) -> FormatError:
        return FormatError(
            f"{self.file.path}: '{self.architecture}.{name}' is missing; download it again"
        )


def _head_dim(keys: _Keys, hidden: int, heads: int) -> int:
    given = keys.optional_integer("attention.key_length")
    if given is None:
        if heads < 1 or hidden % heads:
            raise FormatError(
                f"{keys.file.path}: embedding_length {hidden} is no multiple of head_count {heads}"
            )
        given = hidden // heads
    for name in ("attention.value_length", "rope.dimension_count"):
        other = keys.optional_integer(name)
        if other not in (None, given):
            raise UnsupportedModel(
                f"{keys.file.path}: {name} is {other}, heads have {given} dimensions; only models "
                "where all of a head is rotated are supported"
            )
    return given


def _vocab_size(file: GGUFFile) -> int:
    return file.info(EMBEDDING).shape[0]


def own_facts(file: GGUFFile) -> Mapping[str, Any]:
    """What we wrote of a model that GGUF has no keys for (config_keys.py); else empty."""
    text = file.text_bytes(OWN_FACTS)
    if text is None:
        return {}
    try:
        facts = json_text.parse(text)
    except json_text.JSONFault as fault:
        raise FormatError(f"{file.path}: '{OWN_FACTS}' {fault}; {DAMAGED}") from None
    ends, scaling = (
        (facts.get("eos_token_ids"), facts.get("rope_scaling"))
        if isinstance(facts, Mapping)
        else (None, None)
    )
    if not isinstance(ends, list) or not isinstance(scaling, Mapping | None):
        raise FormatError(f"{file.path}: '{OWN_FACTS}' is not what we write; {DAMAGED}")
    return {"eos_token_ids": ends, "rope_scaling": scaling}


def _ends(file: GGUFFile) -> dict[str, Any]:
    """First token of a text, and all that end one; a file without a tokenizer may name them too."""
    count = file.length(f"{PREFIX}tokens")
    count = _vocab_size(file) if count is None else count
    named = [special_id(file, role, count) for role in ("eos", "eot", "eom")]
    controls = control_tokens(file)
    ids = [*named, *(controls.get(text) for text in _ENDS)]
    found = tuple(dict.fromkeys(i for i in ids if i is not None))
    return {
        "bos_token_id": special_id(file, "bos", count),
        "eos_token_ids": tuple(own_facts(file).get("eos_token_ids", found)),
    }


def _sliding(keys: _Keys, layers: int) -> dict[str, Any]:
    """Gemma3's layer types, window and local theta."""
    window = keys.optional_integer("attention.sliding_window")
    if window is None:
        raise UnsupportedModel(
            f"{keys.file.path}: '{keys.architecture}.attention.sliding_window' is missing, so "
            "nothing tells what its layers see; convert the Hugging Face checkpoint instead"
        )
    key = f"{keys.architecture}.attention.sliding_window_pattern"
    if keys.file.is_array(key):
        pattern = keys.file.numbers(key)
        if pattern is None or len(pattern) != layers:
            raise FormatError(f"{keys.file.path}: '{key}' does not fit {layers} layers")
        slides = [bool(one) for one in pattern]
    else:
        every = keys.file.integer(key) or GEMMA3_PATTERN
        slides = [(layer + 1) % every != 0 for layer in range(min(layers, 1 << 10))]
    if not any(slides):
        return {}
    local = keys.file.number(f"{keys.architecture}.rope.freq_base_swa")
    return {
        "layer_types": tuple("sliding_attention" if s else "full_attention" for s in slides),
        "sliding_window": window,
        "rope_local_base_freq": _GEMMA3_LOCAL_THETA if local is None else local,
    }


def _rope_scaling(keys: _Keys, head_dim: int, theta: float) -> RopeScaling | None:
    if ROPE_FACTORS in keys.file.tensors:
        return _llama3_scaling(keys.file, head_dim, theta)
    kind = keys.file.text(f"{keys.architecture}.rope.scaling.type") or "none"
    factor = keys.file.number(f"{keys.architecture}.rope.scaling.factor")
    if kind == "none" or factor in (None, 0.0, 1.0):
        return None
    if kind == "linear":
        return scaling_from_dict({"rope_type": "linear", "factor": factor})
    if kind != "yarn":
        raise UnsupportedModel(
            f"{keys.file.path}: rope.scaling.type {shown(kind)} is not supported; supported: "
            "none, linear, yarn"
        )
    assert factor is not None
    named = {
        name: keys.file.number(f"{keys.architecture}.rope.scaling.{name}")
        for name in ("attn_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
    }
    attention = named["attn_factor"] or named["yarn_attn_factor"] or 1.0
    return scaling_from_dict(
        {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.optional_integer(
                "rope.scaling.original_context_length"
            )
            or keys.integer("context_length"),
            "attention_factor": attention * YarnScaling.default_attention_factor(factor),
            "beta_fast": named["yarn_beta_fast"] or 32.0,
            "beta_slow": named["yarn_beta_slow"] or 1.0,
        }
    )


def _llama3_scaling(file: GGUFFile, head_dim: int, theta: float) -> RopeScaling | None:
    """Which of the published scalings makes the factors that the file holds."""
    info = file.info(ROPE_FACTORS)
    if info.type_id not in PLAIN or info.shape != (head_dim // 2,):
        raise FormatError(
            f"{file.path}: '{ROPE_FACTORS}' is {info.dtype} {list(info.shape)}; expected F32 "
            f"[{head_dim // 2}]; download it again"
        )
    factors = dequantise(info.type_id, file.data(ROPE_FACTORS))
    if (factors == 1).all():
        return None
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError(f"{file.path}: '{ROPE_FACTORS}' holds what is no factor; {DAMAGED}")
    if not 1 <= theta <= 1e12:
        raise FormatError(f"{file.path}: rope.freq_base is {theta:g}, which cannot be; {DAMAGED}")
    plain = frequencies(head_dim, theta)
    own = own_facts(file).get("rope_scaling")
    given: tuple[RopeScaling, ...] = () if own is None else (scaling_from_dict(own),)
    for scaling in (*given, *_LLAMA3_SCALINGS):
        if np.allclose(plain / scaling.apply(plain, theta), factors, rtol=_TOLERANCE, atol=0):
            return scaling
    raise UnsupportedModel(
        f"{file.path}: '{ROPE_FACTORS}' is none of the scalings of Llama 3.1 and 3.2; "
        "convert the Hugging Face checkpoint instead"
    )
