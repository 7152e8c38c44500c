"""Random checkpoints of the published shapes: for measuring speed and for tests.

Written as a stream, so a 100-billion-weight checkpoint needs little memory. The same seed gives the
same file. Weights are uniform over -1, 0, 1; scales keep activations near 1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.random  # here: where numpy first needs it, its loading may swallow a Ctrl-C
from numpy.typing import NDArray

from trilobit.errors import OutputError, RequestError
from trilobit.formats.hf.config import to_hf
from trilobit.formats.hf.reader import pack_hf
from trilobit.formats.packed.writer import packed_writer, write_screen
from trilobit.formats.safetensors import Declared, SafetensorsWriter
from trilobit.formats.text_files import TextFiles
from trilobit.formats.whole_directory import new_directory
from trilobit.formats.whole_file import write_remedy
from trilobit.layouts import chosen_layout
from trilobit.model import packing, tensor_names, ternary
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout, Order
from trilobit.progress import Steps, Watch, steps

Form = Literal["packed", "bf16"]

_CHUNK_ROWS = 4096
_RANDOM_DENSITY = 0.5  # of positive gates, where weights are random


def synth(
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    form: Form = "packed",
    seed: int = 0,
    gate_density: float | None = None,
    progress: Watch | None = None,
) -> None:
    """Write a random Hugging Face checkpoint into the new or empty directory `out`.

    form: "packed" is uint8 with `weight_scale` (offline), "bf16" float masters (online), or floats
        that are ternary already where scales are by group. Those have no packed form of Hugging
        Face's: RequestError.
    gate_density: see `synth_packed`.
    """
    out = Path(out)
    _check_gate_density(config, gate_density)
    if config.scales != "tensor" and form == "packed":
        raise RequestError(
            f"scales by {config.scales} have no packed form of Hugging Face's; write floats "
            "(--form bf16) or one packed file (--to-packed-file)"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists; give a new or empty directory")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(
            f"{out}: cannot be written (Not a directory); choose another place"
        ) from None
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be written ({error.strerror}); {write_remedy(error)}"
        ) from None
    with new_directory(out) as directory:
        step = steps(progress, f"Writing {out.name}")
        _write_weights(config, directory / "model.safetensors", form, seed, gate_density, step)
        text = json.dumps(_hf_config(config, form), indent=2)
        (directory / "config.json").write_text(text + "\n", encoding="utf-8")


def synth_packed(
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    layout: Layout = "2-bit",
    gate_density: float | None = None,
    progress: Watch | None = None,
) -> None:
    """Write a random packed file directly, without the checkpoint in between.

    gate_density: the share of a relu² model's gates that is positive for a token, up to the half
    that random weights give. Less is what training leads to; here by rows of `gate_proj` that are
    zeros, while among the others it is a token's matter which are positive.

    RequestError for the 1.6-bit layout with scales by group, and for a gate density that is not in
    (0, 0.5] or of a model without relu².
    """
    _check_gate_density(config, gate_density)
    layout = chosen_layout(layout, config, name=str(out))
    random = np.random.default_rng(seed)
    everything = list(tensor_names.all_projections(config))
    step = steps(progress, f"Writing {Path(out).name}")
    nothing = packing.pack(np.zeros((1, 1), dtype=np.int8), layout)[0, 0, 0, 0]
    with packed_writer(Path(out), config, "BF16", TextFiles(), "synth", layout=layout) as file:
        for done, (name, (rows, columns)) in enumerate(everything):
            order = tensor_names.order(config, name)
            packed = _packed_weights(random, rows, columns, layout, order)
            if name.endswith(".gate_proj"):
                closed = np.flatnonzero(_closed(random, rows, gate_density))
                packed[closed // packing.ROWS, :, closed % packing.ROWS] = nothing
            file.write(f"{name}.weight", packed)
            if step:
                step(done + 1, len(everything))
        for name, length in tensor_names.all_norms(config):
            file.write(name, np.ones(length, dtype=np.float32))
        tables = tensor_names.float_tables(config)
        head = _table(random, config) if tables else np.empty((0, 0), dtype="<u2")
        if tables:
            write_screen(file, head, "BF16")
        for name, (rows, columns) in everything:
            scales = _scales(random, config, rows, columns)
            file.write(
                f"{name}.weight_scale", _bf16(scales) if config.scales == "group" else scales
            )
        for name in tables:
            file.write(name, head if name == tables[-1] else _table(random, config))


def _check_gate_density(config: ModelConfig, density: float | None) -> None:
    if density is None:
        return
    if config.hidden_act != "relu2":
        raise RequestError(
            f"a gate density is of relu² models, these gates go through {config.hidden_act}; "
            "leave it out"
        )
    if not 0 < density <= _RANDOM_DENSITY:
        raise RequestError(f"gate_density is {density}; give more than 0 and at most 0.5")


def _closed(
    random: np.random.Generator, rows: int, gate_density: float | None
) -> NDArray[np.bool_]:
    """The rows of a `gate_proj` that are zeros, so that no token's gate is positive there."""
    if gate_density is None:
        return np.zeros(rows, dtype=np.bool_)
    closed: NDArray[np.bool_] = random.random(rows) >= gate_density / _RANDOM_DENSITY
    return closed


def _packed_weights(
    random: np.random.Generator, rows: int, columns: int, layout: Layout, order: Order
) -> NDArray[np.uint8]:
    """Random bytes that are weights; but what is partly padding is packed."""
    size = packing.packed_shape(rows, columns, layout, order)
    weights = packing.weight_bytes(layout)
    packed = weights[random.integers(0, len(weights), size, dtype=np.uint8)]
    block = packing.block_columns(layout)
    if order != "groups":
        lines, length = (columns, rows) if order == "columns" else (rows, columns)
        whole = length // block
        ends = np.zeros((lines, size[1] // 4 * block - whole * block), dtype=np.int8)
        ends[:, : length % block] = random.integers(-1, 2, (lines, length % block), dtype=np.int8)
        packed[:, 4 * whole :] = packing.pack(ends, layout, "rows")[:, : size[1] - 4 * whole]
        return packed
    last_row, last_column = rows % packing.ROWS, columns % block
    for place, rest in (
        ((slice(None), slice(-1, None)), (rows, last_column)),
        ((slice(-1, None), slice(None)), (last_row, columns)),
    ):
        if 0 not in rest:
            packed[place] = packing.pack(random.integers(-1, 2, rest, dtype=np.int8), layout)
    return packed


def _scale(columns: int) -> float:
    # Two thirds of the weights are ±1: the output of K inputs near 1 is near 1.
    return 1 / math.sqrt(columns * 2 / 3)


def _scales(
    random: np.random.Generator, config: ModelConfig, rows: int, columns: int
) -> NDArray[np.float32]:
    size = tensor_names.scale_shape(config, rows, columns)
    spread = random.uniform(0.5, 1.5, size) if config.scales != "tensor" else np.ones(size)
    return (_scale(columns) * spread).astype(np.float32)


def _table(random: np.random.Generator, config: ModelConfig) -> NDArray[np.uint16]:
    table = np.empty((config.vocab_size, config.hidden_size), dtype="<u2")
    for row in range(0, config.vocab_size, _CHUNK_ROWS):
        part = table[row : row + _CHUNK_ROWS]
        part[:] = _bf16(random.standard_normal(part.shape, dtype=np.float32) * np.float32(0.05))
    return table


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Cut to bfloat16: good enough for random numbers."""
    return (values.view(np.uint32) >> 16).astype("<u2")


def _write_weights(
    config: ModelConfig,
    path: Path,
    form: Form,
    seed: int,
    gate_density: float | None,
    progress: Steps | None,
) -> None:
    random = np.random.default_rng(seed)
    declared = list(_declare_hf(config, form))
    with SafetensorsWriter(path, declared, {"format": "pt"}) as file:
        for done, (name, dtype, size) in enumerate(declared):
            rows = _rows(config, name) if name.endswith("_proj.weight") else 0
            gates = name.endswith(".gate_proj.weight")
            closed = _closed(random, rows, gate_density if gates else None)
            if dtype == "U8":
                codes = random.integers(-1, 2, (rows, size[1]), dtype=np.int8)
                codes[closed] = 0
                array: NDArray[Any] = pack_hf(codes)
            elif name.endswith("weight_scale"):
                columns = dict(tensor_names.all_projections(config))[
                    name.removesuffix(".weight_scale")
                ][1]
                array = _bf16(np.array([_scale(columns)], dtype=np.float32))
            elif "norm" in name:  # of which Gemma's hold one less than they multiply with
                less = config.model_type == "gemma3_text" and "rms_norm" not in name
                array = _bf16(np.full(size, 1 - less, dtype=np.float32))
            elif config.scales == "group":
                codes = random.integers(-1, 2, size, dtype=np.int8)
                scales = _scales(random, config, *size)
                array = _bf16(
                    codes * np.repeat(scales, ternary.SCALE_COLUMNS, axis=1)[:, : size[1]]
                )
            else:
                array = _bf16(random.standard_normal(size, dtype=np.float32) * np.float32(0.05))
                if gates:
                    array[closed] = 0
            file.write(name, array)
            if progress:
                progress(done + 1, len(declared))


def _rows(config: ModelConfig, name: str) -> int:
    """Of a projection's `.weight`."""
    layer = int(name.split(".")[2])
    return tensor_names.projections(config, layer)[name.removesuffix(".weight")][0]


def _declare_hf(config: ModelConfig, form: Form) -> Iterator[Declared]:
    for name, (rows, columns) in tensor_names.all_projections(config):
        if form == "packed":
            yield f"{name}.weight", "U8", (-(-rows // 4), columns)
            yield f"{name}.weight_scale", "BF16", (1,)
        else:
            yield f"{name}.weight", "BF16", (rows, columns)
    for name, length in tensor_names.all_norms(config):
        yield name, "BF16", (length,)
    for name in tensor_names.float_tables(config):
        yield name, "BF16", (config.vocab_size, config.hidden_size)


def _hf_config(config: ModelConfig, form: Form) -> dict[str, Any]:
    values = {**to_hf(config), "torch_dtype": "bfloat16"}
    if config.scales == "group":
        return values
    values["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline" if form == "packed" else "online",
    }
    if config.projection_norm_eps is not None:
        values["quantization_config"] |= {
            "use_rms_norm": True,
            "rms_norm_eps": config.projection_norm_eps,
        }
    return values
