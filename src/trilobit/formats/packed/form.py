"""What our packed file holds: the names, types, order and metadata of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trilobit.formats.safetensors import Declared
from trilobit.formats.text_files import TextFiles
from trilobit.model import packing, screen, tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout

FORMAT = "trilobit"


VERSION = "5"


def declare_screen(config: ModelConfig) -> list[Declared]:
    """The parts of the screen of a head, as `declare` has them."""
    rows, columns = config.vocab_size, config.hidden_size
    declared: list[Declared] = []
    for name in tensor_names.SCREEN:
        _, _, plane, part = name.split(".")
        if part == "codes":
            declared.append((name, "U8", screen.plane_shape(plane, rows, columns)))
        else:
            declared.append((name, "F32", (rows,)))
    return declared


def declare(
    config: ModelConfig,
    float_dtype: str,
    text: TextFiles,
    *,
    screened: bool = True,
    layout: Layout = "2-bit",
) -> list[Declared]:
    """Tensors of a packed file in the order of their data: large and aligned ones first.

    float_dtype: of the float tables and of group scales.
    screened: whether the file holds the screen of the head; a ternary head has none.
    """
    ternary_tensors: list[Declared] = []
    scales: list[Declared] = []
    grouped = config.scales == "group"
    for name, (rows, columns) in tensor_names.all_projections(config):
        order = tensor_names.order(config, name)
        packed_shape = packing.packed_shape(rows, columns, layout, order)
        ternary_tensors.append((f"{name}.weight", "U8", packed_shape))
        shape = tensor_names.scale_shape(config, rows, columns)
        scales.append((f"{name}.weight_scale", float_dtype if grouped else "F32", shape))
    gains: list[Declared] = [(name, "F32", (n,)) for name, n in tensor_names.all_norms(config)]
    screen_: list[Declared] = []
    if screened and not config.ternary_embeddings:
        screen_ = declare_screen(config)
    size = (config.vocab_size, config.hidden_size)
    tables: list[Declared] = [
        (name, float_dtype, size) for name in tensor_names.float_tables(config)
    ]
    tokenizer: list[Declared] = []
    if text.tokenizer is not None:
        tokenizer.append((tensor_names.TOKENIZER, "U8", (len(text.tokenizer),)))
    # Packed weights are multiples of 64 bytes, all but tables and group scales multiples of 4, and
    # an odd number of 2-byte floats goes behind those: every tensor is aligned for its type.
    return [*ternary_tensors, *gains, *screen_, *scales, *tables, *tokenizer]


def metadata(
    config: ModelConfig, text: TextFiles, source: str, layout: Layout = "2-bit"
) -> dict[str, str]:
    """The metadata of a packed file."""
    values = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(config.to_dict()),
        "source": source,
        "add_bos": "true" if text.add_bos else "false",
    }
    if layout != "2-bit":
        values["layout"] = layout
    if text.chat_template is not None:
        values["chat_template"] = text.chat_template
    if text.pooling is not None:
        values["pooling"] = text.pooling.to_json()
    if text.sampling.said:
        values["sampling"] = json.dumps(text.sampling.said)
    # A lone surrogate (of a file name that is not UTF-8, or a JSON escape) has no encoding.
    return {key: value.encode("utf-8", "replace").decode() for key, value in values.items()}


def bytes_by_part(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the file by what they are for; `tensors` maps names to TensorInfo."""
    parts = {
        "ternary": 0,
        "scales": 0,
        "norms": 0,
        "embedding": 0,
        "head": 0,
        "screen": 0,
        "tokenizer": 0,
        "checksums": 0,
    }
    for name, info in tensors.items():
        if info.dtype == "U8" and name.endswith(".weight"):
            part = "ternary"
        elif name == tensor_names.EMBEDDING:
            part = "embedding"
        elif name == tensor_names.HEAD:
            part = "head"
        elif name in (*tensor_names.SCREEN, *tensor_names.OLD_SCREEN):
            part = "screen"
        elif name == tensor_names.TOKENIZER:
            part = "tokenizer"
        elif name == tensor_names.CHECKSUMS:
            part = "checksums"
        elif name.endswith((".weight_scale", ".scales", ".biases")):  # the latter of MLX
            part = "scales"
        elif "norm" in name:
            part = "norms"
        else:
            part = "ternary"
        parts[part] += info.size_bytes
    return parts
