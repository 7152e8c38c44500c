"""A GGUF file as a `Source`: any of its types becomes codes and scales, gains and tables."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.gguf import types
from trilobit.formats.gguf.config import ROPE_FACTORS, architecture, read_config
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.float_blocks import PLAIN, dequantise
from trilobit.formats.gguf.names import gguf_name
from trilobit.formats.gguf.tables import QuantisedTable
from trilobit.formats.gguf.tensors import TensorInfo
from trilobit.formats.gguf.ternary_blocks import I2SLayout, Ternary, decode
from trilobit.formats.gguf.text import read_text
from trilobit.formats.tables import Table, check_finite
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig, Scales

_LONGEST_LABEL = 200  # characters
_GROUP = 128  # columns that share a scale in our group form
# No weights are so small or large; their products with activations stay normal float32.
_LEAST_SCALE = 1e-30
# The scale of a matrix of nothing but zeros: the floor of the quantiser.
_SCALE_OF_ZEROS = np.float32(1e-5)


class GGUFModel:
    """The ternary model in a GGUF file: all that can be checked without reading it all.

    i2s_layout: how its I2_S tensors are laid out, which the file does not say; None: as on x86,
    as published files are, unless their sizes show that it cannot be.
    Raises FormatError for a damaged file, UnsupportedModel for a model that we do not run.
    """

    def __init__(self, path: str | os.PathLike[str], i2s_layout: I2SLayout | None = None) -> None:
        self.file = GGUFFile(path)
        self.path = self.file.path
        _, self._architecture = architecture(self.file)
        embedding = self.file.info("token_embd.weight")
        # What the header tells: whether scales differ within a matrix shows only when it is read.
        self.shape = read_config(self.file, ternary_embeddings=embedding.type_id in types.TERNARY)
        self._projections = dict(tensor_names.all_projections(self.shape))
        self._check_tensors()
        self._layout = i2s_layout or self._proven_layout()

    @property
    def label(self) -> str:
        """Where the model came from first, for people."""
        name = self.file.text("general.name") or self.path.stem
        return "".join(c if c.isprintable() else "?" for c in name[:_LONGEST_LABEL])

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors that we use, by our names."""
        ours = [f"{name}.weight" for name in self._projections]
        ours += [name for name, _ in tensor_names.all_norms(self.shape)]
        ours += self._tables
        return {name: self.file.info(gguf_name(name, self.shape)) for name in ours}

    @cached_property
    def config(self) -> ModelConfig:
        """Its shape; reads the scales of types that have many."""
        if self.shape.scales == "group":
            return self.shape
        kinds = {self._scales_of(name) for name in self._projections}
        scales: Scales = "tensor"
        if kinds - {"tensor"}:
            scales = "row" if "group" not in kinds else "group"
        return replace(self.shape, scales=scales)

    @cached_property
    def text(self) -> TextFiles:
        """Its tokenizer and chat template."""
        return read_text(self.file, self.shape)

    @cached_property
    def float_dtype(self) -> str:
        """Type of embedding, head and group scales, by safetensors' name."""
        stored = {self.file.info(gguf_name(n, self.shape)).type_id for n in self._tables}
        if self.config.scales == "group":
            stored |= {self._scale_type(name) for name in self._projections}
        kinds = {PLAIN[type_id][0] if type_id in PLAIN else "F32" for type_id in stored}
        return kinds.pop() if len(kinds) == 1 else "F32"

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` and the scales that multiply them, by `config.scales`."""
        ternary = self._ternary(name)
        columns = ternary.codes.shape[1]
        if self.config.scales == "tensor":
            return ternary.codes, self._one_scale(name, ternary)
        if self.config.scales == "row":
            return ternary.codes, ternary.scales[:, 0]
        runs = ternary.scales.shape[1]
        groups = -(-columns // _GROUP)
        if runs <= groups:
            return ternary.codes, np.repeat(ternary.scales, -(-groups // runs), axis=1)[:, :groups]
        return ternary.codes, self._halved(name, ternary.scales)

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of a norm."""
        stored = gguf_name(name, self.shape)
        gain = dequantise(self.file.info(stored).type_id, self.file.data(stored))
        if not np.isfinite(gain).all():
            raise FormatError(f"{self.path}: '{stored}' holds NaN or infinity; download it again")
        return gain

    def table(self, name: str) -> Table:
        """Embedding or head in `float_dtype` (BF16 as uint16), without NaN or infinity."""
        stored = gguf_name(name, self.shape)
        info = self.file.info(stored)
        data = self.file.data(stored)
        if info.type_id in PLAIN and PLAIN[info.type_id][0] == self.float_dtype:
            table: Table = data.view(PLAIN[info.type_id][1]).reshape(info.shape)
        else:
            table = QuantisedTable(info.type_id, data, info.shape)
        check_finite(table, self.float_dtype, f"{self.path}: '{stored}'", self.forget)
        return table

    def forget(self) -> None:
        """Let go of the memory of what was read so far."""
        self.file.forget()

    # ---- ternary matrices ---------------------------------------------------------------------

    def _ternary(self, name: str) -> Ternary:
        stored = gguf_name(f"{name}.weight", self.shape)
        info = self.file.info(stored)
        rows, columns = self._projections[name]
        try:
            ternary = decode(info.type_id, self.file.data(stored), (rows, columns), self._layout)
        except FormatError as error:
            raise FormatError(f"{self.path}: '{stored}': {error}") from None
        scales = ternary.scales
        if _extra(stored) in self.file.tensors:
            scales = scales * self._extra_scale(_extra(stored))
        codes = ternary.codes
        if self._architecture.interleaved and name.endswith(("q_proj", "k_proj")):
            codes, scales = self._halves(codes), self._halves(scales)
        return Ternary(codes, scales)

    def _halves(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of every head in our order: those that turn together half a head apart."""
        half = self.shape.head_dim // 2
        pairs = rows.reshape(-1, half, 2, rows.shape[1])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    def _scales_of(self, name: str) -> Scales:
        """What of a matrix has a scale of its own."""
        if self.file.info(gguf_name(f"{name}.weight", self.shape)).type_id == types.I2_S:
            return "tensor"
        scales = self._ternary(name).scales
        self.forget()
        if _uniform(scales.reshape(1, -1)):
            return "tensor"
        return "row" if _uniform(scales) else "group"

    def _scale_type(self, name: str) -> int:
        """What the scales of a matrix come in."""
        stored = gguf_name(f"{name}.weight", self.shape)
        exact = self.file.info(stored).type_id in (types.I2_S, types.IQ2_BN)
        return types.F32 if exact or _extra(stored) in self.file.tensors else types.F16

    def _one_scale(self, name: str, ternary: Ternary) -> NDArray[np.float32]:
        scale = ternary.scales.max()
        if scale == 0 and not ternary.codes.any():
            scale = _SCALE_OF_ZEROS
        if not _LEAST_SCALE <= scale <= 1 / _LEAST_SCALE:
            stored = gguf_name(f"{name}.weight", self.shape)
            raise FormatError(
                f"{self.path}: the scale of '{stored}' is {scale}; expected a positive number; "
                "download it again"
            )
        return np.array([scale], dtype=np.float32)

    def _halved(self, name: str, scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scales of groups of 64 as those of groups of 128, where they come in pairs."""
        if scales.shape[1] % 2:
            scales = np.pad(scales, ((0, 0), (0, 1)), mode="edge")
        pairs = scales.reshape(len(scales), -1, 2)
        if not ((pairs[..., 0] == pairs[..., 1]) | (pairs == 0).any(axis=-1)).all():
            raise UnsupportedModel(
                f"{self.path}: '{gguf_name(f'{name}.weight', self.shape)}' has a scale for 64 "
                "weights each; only scales of 128 or more are supported"
            )
        halved: NDArray[np.float32] = pairs.max(axis=-1)
        return halved

    def _extra_scale(self, name: str) -> np.float32:
        info = self.file.info(name)
        if info.type_id != types.F32 or info.size_bytes != 4:
            raise FormatError(
                f"{self.path}: '{name}' is {info.dtype} {list(info.shape)}; expected F32 [1]"
            )
        return np.float32(self.file.data(name).view("<f4")[0])

    def _proven_layout(self) -> I2SLayout:
        sizes = [
            rows * columns
            for name, (rows, columns) in self._projections.items()
            if self.file.info(gguf_name(f"{name}.weight", self.shape)).type_id == types.I2_S
        ]
        if all(size % 128 == 0 for size in sizes) or any(size % 64 for size in sizes):
            return "x86"
        return "arm"

    # ---- checks -------------------------------------------------------------------------------

    @property
    def _tables(self) -> list[str]:
        return tensor_names.float_tables(self.shape)

    def _check_tensors(self) -> None:
        """Every tensor is one that we use, of a type and shape that we read."""
        size = (self.shape.vocab_size, self.shape.hidden_size)
        wanted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            gguf_name(f"{name}.weight", self.shape): (shape, types.TERNARY)
            for name, shape in self._projections.items()
        }
        wanted |= {gguf_name(name, self.shape): (size, types.FLOATS) for name in self._tables}
        gains = {
            gguf_name(name, self.shape): ((length,), types.FLOATS)
            for name, length in tensor_names.all_norms(self.shape)
        }
        for name, (shape, kinds) in {**wanted, **gains}.items():
            info = self.file.info(name)
            if info.shape != shape:
                raise FormatError(
                    f"{self.path}: tensor '{name}' is {list(info.shape)}; the keys ask for "
                    f"{list(shape)}; download it again"
                )
            if info.type_id not in kinds:
                raise UnsupportedModel(
                    f"{self.path}: tensor '{name}' is {info.dtype}; supported there: "
                    f"{', '.join(types.TYPES[kind].name for kind in kinds)}"
                )
        known = {*wanted, *gains, ROPE_FACTORS}
        known |= {_extra(name) for name in wanted}
        foreign = sorted(set(self.file.tensors) - known)
        if foreign:
            raise UnsupportedModel(
                f"{self.path}: tensor {foreign[0]!r} is not part of a model that Trilobit runs"
            )


def _extra(stored: str) -> str:
    """The name of a scale that llama.cpp may keep beside a tensor."""
    return stored.removesuffix(".weight") + ".scale"


def _uniform(scales: NDArray[np.float32]) -> bool:
    """Whether the scales of each row are one, but for those of zeros."""
    largest = scales.max(axis=1, keepdims=True)
    return bool(((scales == largest) | (scales == 0)).all())
