"""Ternary models as Hugging Face checkpoints have them: codes, gains and tables by name.

Every form of a matrix becomes one, codes in {-1, 0, 1} and scales that multiply: float masters,
ternarised here as at every step of their training ("online"); codes with a scale that multiplies
(AutoBitLinear) or divides (BitLinear); and weights that are ternary by groups (`groups.py`). Names
that differ between families become those of `names.py`, and Gemma's gains, which it stores less
one, whole.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.adapter import not_a_model
from trilobit.formats.dtypes import FLOATS, as_float32
from trilobit.formats.files import read_json
from trilobit.formats.hf.config import model_config, with_projection_norms
from trilobit.formats.hf.group_scales import GROUP, from_floats, from_mlx
from trilobit.formats.hf.quantization import Form, quantization_form
from trilobit.formats.hf.text import read_text_files, with_roles
from trilobit.formats.safetensors import Checkpoint, SafetensorsFile
from trilobit.formats.tables import check_finite, row_blocks
from trilobit.formats.text_files import TextFiles
from trilobit.model import packing, tensor_names, ternary
from trilobit.model.config import ModelConfig

_IF_MASTERS = (
    "if the weights are float masters without scales, set linear_class to autobitlinear and "
    "quantization_mode to online in config.json"
)
# No weights are so small or large; their products with activations stay normal float32.
_LEAST_SCALE = 1e-30
_EMBEDDING = tensor_names.EMBEDDING.removesuffix(".weight")
_FIRST_ROWS = 64  # that tell ternary weights from others
# Names of 1bitLLM's and of BitNet-embedding's checkpoints -> those of transformers.
_ALIASES = (
    (".inner_attn_ln.", ".attn_sub_norm."),
    (".ffn_layernorm.", ".ffn_sub_norm."),
    ("_proj.norm.", "_proj.rms_norm."),
)


# Tensors that a matrix has beside its weight. Masters and floats must have none, which is checked
# with an advice where it matters.
_PARTS: dict[Form, tuple[str, ...]] = {
    "masters": ("weight_scale",),
    "codes": ("weight_scale",),
    "divided codes": ("weight_scale",),
    "floats": (),
    "mlx": ("scales", "biases"),
}


class BitNetCheckpoint:
    """The ternary model in a directory: all that can be checked without reading it all.

    Raises FormatError for a damaged checkpoint, UnsupportedModel for one that we do not run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = self.path = directory
        where = directory / "config.json"
        if not os.path.exists(where):
            raise not_a_model(
                directory, "has no config.json; give the directory of a Hugging Face checkpoint"
            )
        raw = read_json(where)
        config = with_roles(model_config(raw, str(where)), directory)
        self._tensors = Checkpoint(directory)
        config = with_projection_norms(config, self._tensors)
        form = quantization_form(raw, config, where)
        self._stored = self._names_by_ours()
        self._form: Form = form or "floats"
        self.config = config if form and form != "mlx" else self._with_scales(config, where)
        self._projections = dict(tensor_names.all_projections(self.config))
        self._check_names()
        for name in self._projections:
            self._at(f"{name}.weight")
        for name, length in tensor_names.all_norms(self.config):
            self._array(name, (length,))
        self._check_tables()

    @property
    def label(self) -> str:
        """Where the model came from first, for people."""
        return self._tensors.metadata.get("source", self.directory.name)

    @property
    def has_masters(self) -> bool:
        """Whether its projections are float masters, not codes."""
        return self._form == "masters"

    @cached_property
    def text(self) -> TextFiles:
        """Tokenizer, chat template and how a text begins."""
        return read_text_files(self.directory, self.config)

    @property
    def float_dtype(self) -> str:
        """Type of embedding, head and group scales, by safetensors' name."""
        if self._form == "mlx" and self.config.ternary_embeddings:
            return self._dtype(f"{_EMBEDDING}.scales")
        return self._dtype(tensor_names.EMBEDDING)

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` of a matrix and the scales that multiply them."""
        if self._form in ("floats", "mlx"):
            return self._groups(name)
        codes, scale = self._master(name) if self._form == "masters" else self._codes(name)
        return codes, np.array([scale], dtype=np.float32)

    def master(self, name: str) -> NDArray[np.float32]:
        """Float master `[outputs, inputs]` of a matrix, where there are any."""
        return self._float32(f"{name}.weight", self._projections[name])

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of an RMSNorm."""
        file, stored = self._at(name)
        gain = self._float32(name, file.info(stored).shape)
        return np.float32(1) + gain if stores_less_one(self.config, name) else gain

    def table(self, name: str) -> NDArray[Any]:
        """Embedding or head as a view of the file (BF16 as uint16), without NaN or infinity."""
        file, stored = self._at(name)
        array = file.array(stored)
        check_finite(array, self.float_dtype, f"{file.path}: '{stored}'", self.forget)
        return array

    def forget(self) -> None:
        """Let go of the memory of what was read so far."""
        self._tensors.forget()

    # ---- names ---------------------------------------------------------------------------------

    def _names_by_ours(self) -> dict[str, str]:
        """Our names of the tensors -> the checkpoint's."""
        stored: dict[str, str] = {}
        for name in self._tensors:
            ours = name
            for theirs, usual in _ALIASES:
                ours = ours.replace(theirs, usual)
            if ours.startswith(("embed_tokens.", "layers.", "norm.")):  # a model without a head
                ours = f"model.{ours}"
            if ours in stored:
                raise FormatError(
                    f"{self.directory}: tensors '{stored[ours]}' and '{name}' are the same one"
                )
            stored[ours] = name
        return stored

    def _at(self, name: str) -> tuple[SafetensorsFile, str]:
        """The file of a tensor, by our name, and its name there; FormatError when none has it."""
        stored = self._stored.get(name, name)
        return self._tensors.file(stored), stored

    def _dtype(self, name: str) -> str:
        file, stored = self._at(name)
        return file.info(stored).dtype

    # ---- projections --------------------------------------------------------------------------

    def _master(self, name: str) -> tuple[NDArray[np.int8], np.float32]:
        weight = f"{name}.weight"
        packed = self._dtype(weight) == "U8"
        if packed or f"{name}.weight_scale" in self._stored:
            raise FormatError(
                f"{self.directory}: '{name}' has {'packed codes' if packed else 'a scale'}, but "
                "quantization_mode is online; set it to offline in config.json"
            )
        return ternary.absmean_ternary(self.master(name))

    def _codes(self, name: str) -> tuple[NDArray[np.int8], np.float32]:
        if f"{name}.weight_scale" not in self._stored:
            raise FormatError(
                f"{self.directory}: tensor '{name}.weight_scale' is missing; {_IF_MASTERS}"
            )
        scale = self._scale(f"{name}.weight_scale")
        weight, (rows, columns) = f"{name}.weight", self._projections[name]
        if self._dtype(weight) == "U8":
            stored = self._array(weight, (-(-rows // 4), columns))
            try:
                return unpack_hf(stored, rows), scale
            except FormatError as error:
                raise FormatError(f"{self.directory}: '{weight}': {error}") from None
        # transformers unpacks what it loads, and its version 4 saved that: codes as floats.
        values = self._float32(weight, (rows, columns))
        codes = np.rint(np.clip(values, -1, 1)).astype(np.int8)
        if not np.array_equal(codes, values):
            raise FormatError(
                f"{self.directory}: '{weight}' is not all -1, 0 or 1, though it has a scale; "
                f"{_IF_MASTERS}"
            )
        return codes, scale

    def _scale(self, name: str) -> np.float32:
        file, stored = self._at(name)
        values = file.float32(stored).reshape(-1)
        value = float(values[0]) if values.size == 1 else math.nan
        # In float64: rounding the quotient to float32 afterwards gives the float32 quotient.
        scale = 1 / value if self._form == "divided codes" and value else value
        if not _LEAST_SCALE <= scale <= 1 / _LEAST_SCALE:
            raise FormatError(
                f"{self.directory}: '{name}' is {values[:4].tolist()}; "
                "expected one positive number; download it again"
            )
        return np.float32(scale)

    def _groups(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        rows, columns = self._projections[name]
        codes = np.empty((rows, columns), dtype=np.int8)
        scales = np.empty((rows, -(-columns // GROUP)), dtype=np.float32)
        try:
            for block in row_blocks(codes):
                codes[block], scales[block] = self._groups_of(name, block, codes.shape)
        except FormatError as error:
            raise FormatError(f"{self.directory}: '{name}': {error}") from None
        if self.config.scales == "group":
            return codes, scales
        used = np.unique(scales[scales > 0])
        if len(used) != 1:
            raise FormatError(
                f"{self.directory}: '{name}' has {len(used)} magnitudes, other matrices have one"
            )
        return codes, used

    def _groups_of(
        self, name: str, rows: slice, shape: tuple[int, int]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes and group scales of some rows of a matrix."""
        weight = f"{name}.weight"
        if self._form == "floats":
            values = as_float32(self._array(weight, shape)[rows], self._dtype(weight))
            if not np.isfinite(values).all():
                raise FormatError("holds NaN or infinity; download it again")
            return from_floats(values)
        groups = shape[0], shape[1] // GROUP
        words = self._array(weight, (shape[0], shape[1] // 16))[rows]
        scales, biases = (
            as_float32(self._array(part, groups)[rows], self._dtype(part))
            for part in (f"{name}.scales", f"{name}.biases")
        )
        if words.dtype != np.uint32 or not np.isfinite(scales).all():
            raise FormatError("is not of 32-bit words and finite scales; download it again")
        return from_mlx(words, scales, biases)

    def _with_scales(self, config: ModelConfig, where: Path) -> ModelConfig:
        """What has a scale of its own in a checkpoint whose config does not say it.

        UnsupportedModel for a float model. Looks at the first rows; `projection` at the others.
        """
        if self._form == "mlx":
            ternary_tables = f"{_EMBEDDING}.scales" in self._stored
            return replace(config, scales="group", ternary_embeddings=ternary_tables)
        first = next(iter(tensor_names.projections(config, 0)))
        _, scales = self._first_groups(first, where)
        if len(np.unique(scales[scales > 0])) == 1:
            return config
        try:
            self._first_groups(_EMBEDDING, where)
        except UnsupportedModel:
            return replace(config, scales="group")
        return replace(config, scales="group", ternary_embeddings=True)

    def _first_groups(self, name: str, where: Path) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        file, stored = self._at(f"{name}.weight")
        info = file.info(stored)
        try:
            if info.dtype not in FLOATS or len(info.shape) != 2:
                raise FormatError(f"weights are {info.dtype}")
            rows = file.array(stored)[: min(info.shape[0], _FIRST_ROWS)]
            return from_floats(as_float32(rows, info.dtype))
        except FormatError:
            raise UnsupportedModel(
                f"{where}: no quantization_config, so this is a float model; if it was trained "
                "with BitLinear, add one of quant_method bitnet, linear_class autobitlinear and "
                "quantization_mode online"
            ) from None

    # ---- checks -------------------------------------------------------------------------------

    def _array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        file, stored = self._at(name)
        found = file.info(stored).shape
        if found != shape:
            raise FormatError(
                f"{file.path}: tensor '{stored}' is {list(found)}; the config asks for "
                f"{list(shape)}"
            )
        return file.array(stored)

    def _float32(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        self._array(name, shape)
        file, stored = self._at(name)
        values = file.float32(stored)
        if not np.isfinite(values).all():
            raise FormatError(f"{file.path}: '{stored}' holds NaN or infinity; download it again")
        return values

    def _check_names(self) -> None:
        """Every tensor is one that we use: one left over would silently change the model."""
        known = {
            tensor_names.EMBEDDING,
            tensor_names.HEAD,
            *(name for name, _ in tensor_names.all_norms(self.config)),
        }
        for name in self._projections:
            known.add(f"{name}.weight")
            known |= {f"{name}.{part}" for part in _PARTS[self._form]}
        foreign = sorted(n for n in self._stored if n not in known and "rotary_emb" not in n)
        if foreign:
            raise UnsupportedModel(
                f"{self.directory}: tensor {self._stored[foreign[0]][:80]!r} is not part of a "
                f"{self.config.model_type} model"
            )

    def _check_tables(self) -> None:
        if self.config.ternary_embeddings:
            return
        shape = (self.config.vocab_size, self.config.hidden_size)
        embedding = self._array(tensor_names.EMBEDDING, shape)
        if self.float_dtype not in FLOATS:
            raise FormatError(
                f"{self.directory}: '{tensor_names.EMBEDDING}' is {self.float_dtype}; "
                f"expected a float: {', '.join(FLOATS)}"
            )
        tied = self.config.tie_word_embeddings
        if tied and tensor_names.HEAD not in self._stored:
            return
        head = self._array(tensor_names.HEAD, shape)
        head_dtype = self._dtype(tensor_names.HEAD)
        if head_dtype != self.float_dtype:
            raise FormatError(
                f"{self.directory}: '{tensor_names.HEAD}' is {head_dtype}, the embedding is "
                f"{self.float_dtype}; save both in one type"
            )
        if tied and not all(np.array_equal(head[r], embedding[r]) for r in row_blocks(head)):
            raise FormatError(
                f"{self.directory}: tie_word_embeddings is true, but {tensor_names.HEAD} differs "
                "from the embedding; set it to false in config.json"
            )
        self.forget()


def stores_less_one(config: ModelConfig, name: str) -> bool:
    """Whether a norm multiplies by one more than it stores: Gemma's, but for a projection's own."""
    return config.model_type == "gemma3_text" and "_proj.rms_norm." not in name


def unpack_hf(stored: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    """Codes of transformers' layout: bits 2i, 2i+1 of stored row r hold row `i * stored_rows + r`.

    FormatError when a code is 3.
    """
    packing.check_codes(stored)
    codes = np.concatenate([(stored >> 2 * i) & np.uint8(3) for i in range(4)])[:rows]
    return codes.view(np.int8) - np.int8(1)


def pack_hf(codes_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Inverse of `unpack_hf`: uint8 `[ceil(N / 4), K]`."""
    rows = -(-codes_NK.shape[0] // 4)
    u = np.zeros((4 * rows, codes_NK.shape[1]), dtype=np.uint8)
    u[: codes_NK.shape[0]] = codes_NK.view(np.uint8) + np.uint8(1)
    quarters = u.reshape(4, rows, -1)
    packed_rows: NDArray[np.uint8] = (
        quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    )
    return packed_rows
