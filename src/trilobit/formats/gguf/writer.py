"""Any `Source` as a GGUF file, for llama.cpp and bitnet.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import UnsupportedModel
from trilobit.formats.dtypes import as_float32
from trilobit.formats.gguf import types
from trilobit.formats.gguf.config_keys import architecture_of, config_keys, rope_factors
from trilobit.formats.gguf.float_blocks import PLAIN, q8_0
from trilobit.formats.gguf.header import MAGIC, U32, U64
from trilobit.formats.gguf.names import gguf_name
from trilobit.formats.gguf.ternary_blocks import encode
from trilobit.formats.gguf.tokenizer_keys import sampling_keys, tokenizer_keys
from trilobit.formats.source import Source
from trilobit.formats.tables import Table
from trilobit.formats.whole_file import WholeFile
from trilobit.model import tensor_names
from trilobit.progress import Steps

GGUFType = Literal["i2_s", "tq1_0", "tq2_0"]
_TYPES: dict[GGUFType, int] = {"i2_s": types.I2_S, "tq1_0": types.TQ1_0, "tq2_0": types.TQ2_0}
_TABLE_TYPES = {name: type_id for type_id, (name, _) in PLAIN.items()}

_ALIGNMENT = 32
_VERSION = 3
_LEAST_HALF, _LARGEST_HALF = 2.0**-14, 65504.0  # normal float16


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What the header says of a tensor, and what makes its data when its turn comes."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any] | Table]

    @property
    def size_bytes(self) -> int:
        size = types.TYPES[self.type_id].size_bytes(self.shape)
        assert size is not None
        return size


def write_gguf(
    source: Source,
    out: Path,
    progress: Steps | None = None,
    *,
    ternary: GGUFType = "i2_s",
    q8_tables: bool = False,
) -> None:
    """Write a model as a GGUF file.

    progress: called with (done, total) projections. ternary: type of the projections. TQ1_0 and
    TQ2_0 round scales to float16. q8_tables: embedding and head as Q8_0, else as the source has
    them.

    Raises UnsupportedModel for a model that the types or llama.cpp's keys cannot hold, OutputError
    when `out` cannot be written, and what the source raises.
    """
    config = source.config
    _check_fits(source, _TYPES[ternary])
    keys = [
        *config_keys(config, source.label, _TYPES[ternary]),
        *tokenizer_keys(source.text, config, str(source.path)),
        *sampling_keys(source.text.sampling),
    ]
    tensors = list(_tensors(source, _TYPES[ternary], q8_tables))
    header = _header(keys, tensors)
    total = sum(_aligned(tensor.size_bytes) for tensor in tensors)
    ternary_names = {
        gguf_name(f"{n}.weight", config) for n, _ in tensor_names.all_projections(config)
    }
    done = 0
    with WholeFile(out, header, len(header) + total) as file:
        for tensor in tensors:
            file.write(tensor.make())
            file.write(bytes(_aligned(tensor.size_bytes) - tensor.size_bytes))
            source.forget()
            if progress and tensor.name in ternary_names:
                done += 1
                progress(done, len(ternary_names))


def _check_fits(source: Source, ternary: int) -> None:
    """UnsupportedModel, before anything is read, for what the types cannot hold."""
    config, kind = source.config, types.TYPES[ternary].name
    try:
        architecture_of(config)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{source.path}: {error}") from None
    if config.ternary_embeddings or config.scales == "group":
        raise UnsupportedModel(
            f"{source.path}: its scales are of 128 weights each, which {kind} cannot hold; "
            "write another form"
        )
    if config.scales == "row" and ternary == types.I2_S:
        raise UnsupportedModel(
            f"{source.path}: its rows have scales of their own, which I2_S cannot hold; "
            "write TQ1_0 or TQ2_0"
        )
    block = 128 if ternary == types.I2_S else 256
    for name, (rows, columns) in tensor_names.all_projections(config):
        if columns % block == 0 or (ternary == types.I2_S and rows * columns % block == 0):
            continue
        other = "" if ternary == types.I2_S else "; I2_S takes multiples of 128"
        raise UnsupportedModel(
            f"{source.path}: '{name}' has rows of {columns} weights, no multiple of {block}, as "
            f"{kind} needs{other}"
        )


def _tensors(source: Source, ternary: int, q8_tables: bool) -> Iterator[_Tensor]:
    """Every tensor in the order of the file: tables, then layer by layer, as llama.cpp has them."""
    config = source.config
    for name in tensor_names.float_tables(config):
        yield _table(source, name, q8_tables)
    factors = rope_factors(config)
    if factors is not None:
        yield _Tensor("rope_freqs.weight", types.F32, factors.shape, lambda: factors)
    for name, length in tensor_names.all_norms(config):
        stored = gguf_name(name, config)
        yield _Tensor(stored, types.F32, (length,), partial(source.gain, name))
    for name, shape in tensor_names.all_projections(config):
        stored = gguf_name(f"{name}.weight", config)
        yield _Tensor(stored, ternary, shape, partial(_packed, source, name, ternary))


def _table(source: Source, name: str, q8_tables: bool) -> _Tensor:
    config = source.config
    shape = (config.vocab_size, config.hidden_size)
    stored = gguf_name(name, config)
    if not q8_tables:
        type_id = _TABLE_TYPES[source.float_dtype]
        return _Tensor(stored, type_id, shape, partial(source.table, name))
    if config.hidden_size % 32:
        raise UnsupportedModel(
            f"{source.path}: hidden_size {config.hidden_size} is no multiple of 32, as Q8_0 needs"
        )
    return _Tensor(stored, types.Q8_0, shape, partial(_Q8Table, source, name))


class _Q8Table:
    """A table that reads as the bytes of its Q8_0 blocks."""

    def __init__(self, source: Source, name: str) -> None:
        self._table, self._dtype = source.table(name), source.float_dtype
        rows, columns = self._table.shape
        self.shape = (rows, columns // 32 * 34)
        self.dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        return q8_0(as_float32(self._table[rows], self._dtype)).reshape(-1, self.shape[1])


def _packed(source: Source, name: str, ternary: int) -> NDArray[np.uint8]:
    codes, scales = source.projection(name)
    config = source.config
    if architecture_of(config).interleaved and name.endswith(("q_proj", "k_proj")):
        codes = _interleaved(codes, config.head_dim)
        if len(scales) > 1:
            scales = _interleaved(scales[:, None], config.head_dim)[:, 0]
    if ternary != types.I2_S:
        wrong = scales[(scales != 0) & ((scales < _LEAST_HALF) | (scales > _LARGEST_HALF))]
        if wrong.size:
            raise UnsupportedModel(
                f"{source.path}: '{name}' has the scale {wrong[0]:g}, which float16 cannot hold; "
                "write I2_S"
            )
    return encode(ternary, codes, scales)


def _interleaved(rows: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of every head as llama.cpp turns them: neighbours together, not half a head apart."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _header(keys: list[bytes], tensors: list[_Tensor]) -> bytes:
    parts = [MAGIC, U32.pack(_VERSION), U64.pack(len(tensors)), U64.pack(len(keys)), *keys]
    offset = 0
    for tensor in tensors:
        raw = tensor.name.encode()
        parts += [U64.pack(len(raw)), raw, U32.pack(len(tensor.shape))]
        parts += [U64.pack(size) for size in reversed(tensor.shape)]
        parts += [U32.pack(tensor.type_id), U64.pack(offset)]
        offset += _aligned(tensor.size_bytes)
    header = b"".join(parts)
    return header + bytes(_aligned(len(header)) - len(header))


def _aligned(size: int) -> int:
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT
