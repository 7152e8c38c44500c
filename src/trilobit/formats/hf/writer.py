"""Writes a model as a Hugging Face directory that stock transformers loads.

Three forms of a projection, as `bitnet.py` reads them back. *Packed*: the codes, four rows a byte,
and their scale, as the model's family is published: multiplying (`autobitlinear`) for BitNet,
dividing (`bitlinear`) for others, unless a scale is not the inverse of any float32. *Masters*:
bfloat16 weights that give codes and scale by absmean (`masters.py`). *Floats*: the codes as
bfloat16 and the scale, for models whose scales no masters give.

Nothing is rounded. transformers loads and computes in `torch_dtype`, and its offline AutoBitLinear
leaves tables and norms in the type of the file, so that all of them must be of one. It is the type
of the tables if that holds norms and scales too, else float32: then its logits are ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import OutputError, UnsupportedModel
from trilobit.formats.dtypes import from_float32, nearest
from trilobit.formats.hf.config import model_config, to_hf
from trilobit.formats.hf.divisors import divisor
from trilobit.formats.hf.generation import GENERATION, generation_values
from trilobit.formats.hf.masters import masters
from trilobit.formats.hf.reader import BitNetCheckpoint, pack_hf, stores_less_one
from trilobit.formats.hf.text import write_text_files
from trilobit.formats.safetensors import Declared, SafetensorsWriter, size_of
from trilobit.formats.source import Source
from trilobit.formats.tables import Table, WideTable
from trilobit.formats.whole_directory import new_directory
from trilobit.formats.whole_file import check_space
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.progress import Steps

Projections = Literal["packed", "masters", "floats"]

SHARD_BYTES = 5_000_000_000  # as large as the Hub likes a file

_TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class NoMasters(OutputError):
    """A projection whose codes and scale no bfloat16 masters give."""


def write_hf(
    source: Source,
    out: Path,
    progress: Steps | None = None,
    *,
    projections: Projections = "packed",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the directory `out`: weights, configs, tokenizer.

    Raises what `source` does, UnsupportedModel for one that stock transformers has no layers for,
    OutputError when `out` is taken or cannot be written, NoMasters among them.
    """
    text = source.text
    checkpoint = _Checkpoint(source, projections)
    declared = list(checkpoint.declare())
    shards = _shards(declared, shard_bytes)
    with new_directory(out) as directory:
        check_space(directory, sum(map(size_of, declared)))
        arrays = checkpoint.arrays(progress)
        for file, tensors in shards.items():
            with SafetensorsWriter(directory / file, tensors, _metadata(source)) as writer:
                for name, _, _ in tensors:
                    writer.write(name, next(arrays))
                    source.forget()
        if len(shards) > 1:
            _write_json(directory / "model.safetensors.index.json", _index(shards))
        config = checkpoint.config()
        _write_json(directory / "config.json", config)
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        _write_json(directory / GENERATION, tokens | generation_values(text.sampling))
        write_text_files(directory, text, source.config)


def write_hf_bf16(source: Source, out: Path, progress: Steps | None = None) -> None:
    """Write float weights: masters, or the codes and their scale where no masters give them.

    Raises what `write_hf` does, and OutputError for a source that has masters already: those made
    from its codes would lose what training can go on from.
    """
    if isinstance(source, BitNetCheckpoint) and source.has_masters:
        raise OutputError(f"{source.path}: has float masters already; copy the directory")
    try:
        write_hf(source, out, progress, projections="masters")
    except NoMasters:
        write_hf(source, out, progress, projections="floats")


# ---- tensors ----------------------------------------------------------------------------------


class _Checkpoint:
    """The tensors in the order of their data, and the config."""

    def __init__(self, source: Source, projections: Projections) -> None:
        _refuse_unknown(source)
        self._source = source
        self._projections = projections
        self._shapes = dict(tensor_names.all_projections(source.config))
        self._tables = tensor_names.tables(source.config)
        self._gains = dict(tensor_names.all_norms(source.config))
        # Looking at the scales costs a second reading, which ends at the first that decides.
        self._divides = (
            projections == "packed"
            and source.config.model_type != "bitnet"
            and all(divisor(scale[0]) is not None for scale in self._scales())
        )
        values = chain(map(self._gain, self._gains), map(self._stored_scale, self._scales()))
        exact = all(_is_exact(value, source.float_dtype) for value in values)
        self._dtype = source.float_dtype if exact else "F32"
        mixes = self._divides or projections == "masters"
        self._table_dtype = source.float_dtype if mixes else self._dtype

    def declare(self) -> Iterator[Declared]:
        config = self._source.config
        for name, (rows, columns) in self._shapes.items():
            if self._projections != "packed":
                yield f"{name}.weight", "BF16", (rows, columns)
            elif rows % 4:
                raise OutputError(
                    f"{self._source.path}: '{name}' has {rows} rows, and transformers packs four "
                    "in one; write float weights: --to hf-bf16"
                )
            else:
                yield f"{name}.weight", "U8", (rows // 4, columns)
        for name in self._tables:
            yield name, self._table_dtype, (config.vocab_size, config.hidden_size)
        for name, length in self._gains.items():
            yield name, self._dtype, (length,)
        if self._projections != "masters":
            for name in self._shapes:
                yield f"{name}.weight_scale", self._dtype, (1,)

    def arrays(self, progress: Steps | None) -> Iterator[NDArray[Any] | Table]:
        scales = []
        for done, name in enumerate(self._shapes):
            codes, scale = self._source.projection(name)
            yield self._weights(name, codes, scale)
            if self._projections != "masters":
                scales.append(self._stored_scale(scale))
            if progress:
                progress(done + 1, len(self._shapes))
        for name in self._tables:
            table = self._source.table(name)
            if self._table_dtype != self._source.float_dtype:
                table = WideTable(table, self._source.float_dtype)
            yield table
        for values in chain(map(self._gain, self._gains), scales):
            yield from_float32(values, self._dtype)

    def config(self) -> dict[str, Any]:
        """The JSON of `config.json`."""
        linear_class = "bitlinear" if self._divides else "autobitlinear"
        mode = "online" if self._projections == "masters" else "offline"
        return {
            **_shape(self._source.config, linear_class, mode),
            "torch_dtype": _TORCH_DTYPES[self._dtype],
        }

    def _scales(self) -> Iterator[NDArray[np.float32]]:
        for name in self._shapes:
            yield self._source.projection(name)[1]
            self._source.forget()

    def _weights(
        self, name: str, codes: NDArray[np.int8], scale: NDArray[np.float32]
    ) -> NDArray[Any]:
        if self._projections == "packed":
            return pack_hf(codes)
        if self._projections == "floats":
            return from_float32(codes.astype(np.float32), "BF16")
        weights = masters(codes, scale[0])
        if weights is None:
            where = f"{self._source.path}: '{name}'"
            raise NoMasters(
                f"{where}: no masters give the scale {scale[0]}; write codes and scales"
            )
        return weights

    def _gain(self, name: str) -> NDArray[np.float32]:
        gain = self._source.gain(name)
        if not stores_less_one(self._source.config, name):
            return gain
        # Exact, but if it comes from fewer digits, those are what is published.
        less = gain - np.float32(1)
        short = nearest(less, self._source.float_dtype)
        return np.where(np.float32(1) + short == gain, short, less)

    def _stored_scale(self, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        inverse = divisor(scale[0]) if self._divides else None
        return scale if inverse is None else np.array([inverse])


def _refuse_unknown(source: Source) -> None:
    """UnsupportedModel for what stock transformers has no layers for."""
    config = source.config
    if config.scales != "tensor":
        raise UnsupportedModel(
            f"{source.path}: has a scale for each {config.scales}, and transformers' layers take "
            "one; convert it to a packed file"
        )
    shape = _shape(config, "autobitlinear", "offline")
    if model_config(shape, str(source.path)) != config:
        raise UnsupportedModel(f"{source.path}: transformers has no architecture of this shape")


def _shape(config: ModelConfig, linear_class: str, mode: str) -> dict[str, Any]:
    quantization: dict[str, Any] = {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": mode,
    }
    if config.projection_norm_eps is not None:
        quantization |= {"use_rms_norm": True, "rms_norm_eps": config.projection_norm_eps}
    return {**to_hf(config), "quantization_config": quantization}


def _is_exact(values: NDArray[np.float32], dtype: str) -> bool:
    """Whether a type of floats holds these values."""
    return np.array_equal(nearest(values, dtype), values)


# ---- files ------------------------------------------------------------------------------------


def _shards(declared: list[Declared], shard_bytes: int) -> dict[str, list[Declared]]:
    """File name -> its tensors: as few files of at most `shard_bytes` as their order allows."""
    groups: list[list[Declared]] = [[]]
    room = shard_bytes
    for tensor in declared:
        if size_of(tensor) > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(tensor)
        room -= size_of(tensor)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


def _index(shards: dict[str, list[Declared]]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(size_of(t) for group in shards.values() for t in group)},
        "weight_map": {name: file for file, group in shards.items() for name, _, _ in group},
    }


def _metadata(source: Source) -> dict[str, str]:
    # transformers wants the format; `source` is read back as the label.
    return {"format": "pt", "source": source.label.encode("utf-8", "replace").decode()}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
