"""Whole models as GGUF files, packed by the gguf package or one block at a time: not by us."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from conftest import tiny_config
from gguf import GGMLQuantizationType as Reference
from gguf_image import F32, I32, STRING, U32, array, image, pair, scalar, tensor
from numpy.typing import NDArray

from trilobit.formats.dtypes import as_float32
from trilobit.formats.gguf import types
from trilobit.formats.source import Source
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig

# hf -> gguf, in a layer; independent of the table that is tested
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "self_attn.q_proj.rms_norm": "attn_q_norm_in",
    "self_attn.k_proj.rms_norm": "attn_k_norm_in",
    "self_attn.v_proj.rms_norm": "attn_v_norm_in",
    "self_attn.o_proj.rms_norm": "attn_output_norm_in",
    "mlp.gate_proj.rms_norm": "ffn_gate_norm_in",
    "mlp.up_proj.rms_norm": "ffn_up_norm_in",
    "mlp.down_proj.rms_norm": "ffn_down_norm_in",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def whole_config(**changes: object) -> ModelConfig:
    """A tiny model whose rows fill blocks of 256 weights."""
    sizes: dict[str, object] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 320,
        "max_position_embeddings": 128,
    }
    return tiny_config(**{**sizes, **changes})


class RandomSource:
    """A random model in memory, of any shape; gains near 1, tables in float16."""

    path = Path("random")
    label = "random"
    text = TextFiles()
    float_dtype = "F16"

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self._random = np.random.default_rng(seed)
        self._made: dict[str, Any] = {}

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        if name not in self._made:
            rows, columns = dict(tensor_names.all_projections(self.config))[name]
            codes = self._random.integers(-1, 2, (rows, columns), dtype=np.int8)
            shape = tensor_names.scale_shape(self.config, rows, columns)
            scales = self._random.uniform(0.01, 1, shape).astype(np.float16).astype(np.float32)
            self._made[name] = codes, scales
        made: tuple[NDArray[np.int8], NDArray[np.float32]] = self._made[name]
        return made

    def gain(self, name: str) -> NDArray[np.float32]:
        length = dict(tensor_names.all_norms(self.config))[name]
        return self._keep(name, self._random.uniform(0.5, 2, length).astype(np.float32))

    def table(self, name: str) -> NDArray[Any]:
        size = (self.config.vocab_size, self.config.hidden_size)
        return self._keep(name, self._random.standard_normal(size).astype("<f2"))

    def forget(self) -> None:
        pass

    def _keep(self, name: str, made: NDArray[Any]) -> NDArray[Any]:
        kept: NDArray[Any] = self._made.setdefault(name, made)
        return kept


def gguf_name(name: str, gemma: bool = False) -> str:
    """`model.layers.0.mlp.up_proj` -> `blk.0.ffn_up`."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{({**NAMES, **GEMMA} if gemma else NAMES)[rest]}"


def packed(type_id: int, values: NDArray[np.float32], layout: str = "x86") -> NDArray[np.uint8]:
    """Floats as blocks of a type; ternary ones must be 0 or ± the scale of their run."""
    if type_id == types.IQ2_BN:  # as ik_llama.cpp packs it: a row of zeros is scale 0, codes +1
        scales = np.abs(values).max(axis=1, keepdims=True).astype("<f4")
        u = np.where(scales == 0, 2, np.sign(values) + 1).astype(np.uint8).reshape(-1, 4, 16)
        rows = (u[:, 0] | u[:, 1] << 2 | u[:, 2] << 4 | u[:, 3] << 6).reshape(len(values), -1)
        return np.concatenate([scales.view(np.uint8), rows], axis=1).reshape(-1)
    if type_id == types.Q2_0:  # in groups of 64, as llama.cpp has it
        runs = values.reshape(-1, 64)
        scales = np.abs(runs).max(axis=1, keepdims=True).astype("<f2")
        u = (np.sign(runs) + 1).astype(np.uint8).reshape(-1, 16, 4)
        codes = u[..., 0] | u[..., 1] << 2 | u[..., 2] << 4 | u[..., 3] << 6
        return np.concatenate([scales.view(np.uint8), codes], axis=1).reshape(-1)
    if type_id != types.I2_S:
        return gguf.quantize(values, Reference(type_id)).reshape(-1).view(np.uint8)
    return i2_s(np.sign(values).astype(np.int8), layout, np.abs(values).max())


def i2_s(codes: NDArray[np.int8], layout: str, scale: np.float32) -> NDArray[np.uint8]:
    """Bytes of I2_S, each code put where microsoft/BitNet's quantize_i2_s puts it."""
    i = np.arange(codes.size)
    row, column = np.divmod(i, codes.shape[1])
    if layout == "rows":
        byte, group = row // 4 * codes.shape[1] + column, row % 4
    else:
        block = {"x86": 128, "arm": 64}[layout]
        byte = i // block * (block // 4) + i % (block // 4)
        group = i % block // (block // 4)
    data = np.zeros(codes.size // 4 + 32, dtype=np.uint8)
    np.bitwise_or.at(data, byte, (codes.reshape(-1) + 1).astype(np.uint8) << (6 - 2 * group))
    data[codes.size // 4 :][:4] = np.frombuffer(np.float32(scale).tobytes(), dtype=np.uint8)
    return data


def floats(source: Source, name: str) -> NDArray[np.float32]:
    """A projection or ternary table as floats: codes times scales."""
    codes, scales = source.projection(name)
    if scales.ndim == 1:
        return codes * scales.reshape(-1, 1)
    return codes * np.repeat(scales.reshape(len(codes), -1), 128, axis=1)[:, : codes.shape[1]]


def interleaved(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of queries or keys as llama.cpp's converter orders them."""
    halves = values.reshape(-1, 2, head_dim // 2, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def keys(config: ModelConfig, architecture: str) -> list[bytes]:
    """What a converter writes of a model's shape."""
    integers = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.key_length": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    if config.sliding_window is not None:
        integers["attention.sliding_window"] = config.sliding_window
    floats = {
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    return [
        pair("general.architecture", scalar(STRING, architecture)),
        pair("general.name", scalar(STRING, "tiny")),
        *(pair(f"{architecture}.{k}", scalar(U32, v)) for k, v in integers.items()),
        *(pair(f"{architecture}.{k}", scalar(F32, v)) for k, v in floats.items()),
    ]


def tokens(words: Sequence[str], merges: Sequence[str], controls: Sequence[int]) -> list[bytes]:
    """A byte-level tokenizer without the name of its pre-tokenizer."""
    kinds = [3 if i in controls else 1 for i in range(len(words))]
    return [
        pair("tokenizer.ggml.model", scalar(STRING, "gpt2")),
        pair("tokenizer.ggml.tokens", array(STRING, words)),
        pair("tokenizer.ggml.token_type", array(I32, kinds)),
        pair("tokenizer.ggml.merges", array(STRING, merges)),
        pair("tokenizer.ggml.bos_token_id", scalar(U32, controls[0])),
        pair("tokenizer.ggml.eos_token_id", scalar(U32, controls[1])),
    ]


def write_gguf(
    path: Path,
    source: Source,
    architecture: str = "bitnet-b1.58",
    ternary: int = types.I2_S,
    table: int = types.F16,
    more: Sequence[bytes] = (),
    beside: Mapping[str, object] | None = None,
    left_out: tuple[str, ...] = (),
    layout: str = "x86",
) -> None:
    """The model as bitnet.cpp's or llama.cpp's converter would write it.

    more: further keys. beside: further float32 tensors. left_out: what the keys and tensors not to
    be written have in their names. layout: of I2_S.
    """
    config, gemma = source.config, architecture == "gemma3"
    arrays: list[tuple[str, tuple[int, ...], int, NDArray[np.uint8]]] = []
    for name, shape in tensor_names.all_projections(config):
        values = floats(source, name)
        if architecture == "llama" and name.endswith(("q_proj", "k_proj")):
            values = interleaved(values, config.head_dim)
        arrays.append((gguf_name(name), shape, ternary, packed(ternary, values, layout)))
    for name, length in tensor_names.all_norms(config):
        gain = source.gain(name).view(np.uint8)
        arrays.append((gguf_name(name.removesuffix(".weight"), gemma), (length,), types.F32, gain))
    for name in tensor_names.float_tables(config):
        values = as_float32(source.table(name)[:], source.float_dtype)
        stored = packed(table, values)
        arrays.append((gguf_name(name.removesuffix(".weight")), values.shape, table, stored))
    for name, value in (beside or {}).items():
        floats_ = np.atleast_1d(np.asarray(value, dtype="<f4"))
        arrays.append((name, floats_.shape, types.F32, floats_.view(np.uint8)))
    arrays = [one for one in arrays if not any(text in one[0] for text in left_out)]
    claims, data = [], b""
    for name, shape, type_id, stored in arrays:
        full = name if name in (beside or {}) else f"{name}.weight"
        claims.append(tensor(full, shape[::-1], type_id, len(data)))
        data += stored.tobytes() + bytes(-stored.size % 32)
        assert math.prod(shape) > 0
    pairs = [
        one for one in keys(config, architecture) if not any(t.encode() in one for t in left_out)
    ]
    path.write_bytes(image([*pairs, *more], claims, data))
