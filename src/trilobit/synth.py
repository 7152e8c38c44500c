"""Random checkpoints of the published shapes: for measuring speed and for tests.

Written as a stream, so a 100-billion-weight checkpoint needs little memory. The same seed gives the
same file. Weights are uniform over -1, 0, 1; scales keep activations near 1.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import ternary
from .config import ModelConfig
from .errors import OutputError, RequestError
from .formats import names, packed
from .formats.bitnet import pack_hf
from .formats.hf_config import to_hf
from .formats.safetensors import Declared, SafetensorsWriter
from .formats.text import TextFiles

Form = Literal["packed", "bf16"]

# hidden, ffn, layers, heads, kv heads, vocabulary. 700m, 3b and 2b4t are published models, 8b has
# the shape of Llama 3; the others are those of bitnet.cpp's generate-dummy-bitnet-model.py, which
# made the models of its speed tables (arXiv:2410.16144).
_SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {
    "125m": (768, 3072, 11, 12, 12, 32002),
    "350m": (1024, 3072, 24, 16, 16, 32002),
    "700m": (1536, 4096, 24, 16, 16, 32002),
    "1b": (2048, 3584, 24, 32, 32, 32002),
    "1.5b": (1536, 9216, 28, 32, 32, 32002),
    "2b4t": (2560, 6912, 30, 20, 5, 128256),
    "3b": (3200, 8640, 26, 32, 32, 32002),
    "3.8b": (3840, 8192, 24, 32, 32, 32002),
    "7b": (4096, 12032, 32, 32, 32, 32002),
    "8b": (4096, 14336, 32, 32, 8, 128256),
    "13b": (5120, 13824, 40, 40, 40, 32002),
    "30b": (6656, 16384, 60, 52, 52, 32002),
    "70b": (8192, 24576, 80, 64, 64, 32002),
    "100b": (8192, 45568, 72, 64, 64, 32002),
}
SHAPES = tuple(_SHAPES)

# The 81 bytes whose four codes are all 0, 1 or 2.
_TERNARY_BYTES = np.array(
    [b for b in range(256) if all(b >> shift & 3 != 3 for shift in (0, 2, 4, 6))], dtype=np.uint8
)
_CHUNK_ROWS = 4096


def shape(name: str) -> ModelConfig:
    """The config of a published shape; RequestError names the known ones."""
    if name not in _SHAPES:
        raise RequestError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    hidden, ffn, layers, heads, kv_heads, vocab = _SHAPES[name]
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_ids=(1,),
    )


def synth(
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    form: Form = "packed",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a random Hugging Face checkpoint into the new or empty directory `out`.

    form: "packed" is uint8 with `weight_scale` (offline), "bf16" float masters (online).
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists; give a new or empty directory")
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_weights(config, out / "model.safetensors", form, seed, progress)
        # Last: a directory without its config is plainly unfinished.
        text = json.dumps(_hf_config(config, form), indent=2)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")
    except BaseException as error:
        for name in ("model.safetensors", "config.json"):
            with suppress(OSError):
                (out / name).unlink(missing_ok=True)
        if new:
            with suppress(OSError):
                out.rmdir()
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
        raise


def synth_packed(
    config: ModelConfig,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a random packed file directly, without the checkpoint in between."""
    random = np.random.default_rng(seed)
    everything = list(names.all_projections(config))
    with packed.writer(Path(out), config, "BF16", TextFiles(), "synth") as file:
        for done, (name, (rows, columns)) in enumerate(everything):
            file.write(f"{name}.weight", _packed_weights(random, rows, columns))
            if progress:
                progress(done + 1, len(everything))
        for name, length in names.all_norms(config):
            file.write(name, np.ones(length, dtype=np.float32))
        tables = names.tables(config)
        head = _table(random, config)
        packed.write_screen(file, head, "BF16")
        for name, (_, columns) in everything:
            file.write(f"{name}.weight_scale", np.array([_scale(columns)], dtype=np.float32))
        for name in tables:
            file.write(name, head if name == tables[-1] else _table(random, config))


def _packed_weights(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    if rows % ternary.ROWS == 0 and columns % ternary.COLUMNS == 0:
        size = ternary.packed_shape(rows, columns)
        return _TERNARY_BYTES[random.integers(0, 81, size, dtype=np.uint8)]
    return ternary.pack(random.integers(-1, 2, (rows, columns), dtype=np.int8))


def _scale(columns: int) -> float:
    # Two thirds of the weights are ±1: the output of K inputs near 1 is near 1.
    return 1 / math.sqrt(columns * 2 / 3)


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
    progress: Callable[[int, int], None] | None,
) -> None:
    random = np.random.default_rng(seed)
    declared = list(_declare_hf(config, form))
    with SafetensorsWriter(path, declared, {"format": "pt"}) as file:
        for done, (name, dtype, size) in enumerate(declared):
            if dtype == "U8":
                array: NDArray[Any] = pack_hf(
                    random.integers(-1, 2, (_rows(config, name), size[1]), dtype=np.int8)
                )
            elif name.endswith("weight_scale"):
                columns = dict(names.all_projections(config))[name.removesuffix(".weight_scale")][1]
                array = _bf16(np.array([_scale(columns)], dtype=np.float32))
            elif "norm" in name:
                array = _bf16(np.ones(size, dtype=np.float32))
            else:
                array = _bf16(random.standard_normal(size, dtype=np.float32) * np.float32(0.05))
            file.write(name, array)
            if progress:
                progress(done + 1, len(declared))


def _rows(config: ModelConfig, name: str) -> int:
    layer = int(name.split(".")[2])
    return names.projections(config, layer)[name.removesuffix(".weight")][0]


def _declare_hf(config: ModelConfig, form: Form) -> Iterator[Declared]:
    for name, (rows, columns) in names.all_projections(config):
        if form == "packed":
            yield f"{name}.weight", "U8", (-(-rows // 4), columns)
            yield f"{name}.weight_scale", "BF16", (1,)
        else:
            yield f"{name}.weight", "BF16", (rows, columns)
    for name, length in names.all_norms(config):
        yield name, "BF16", (length,)
    table = (config.vocab_size, config.hidden_size)
    yield names.EMBEDDING, "BF16", table
    if not config.tie_word_embeddings:
        yield names.HEAD, "BF16", table


def _hf_config(config: ModelConfig, form: Form) -> dict[str, Any]:
    return {
        **to_hf(config),
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline" if form == "packed" else "online",
        },
    }
