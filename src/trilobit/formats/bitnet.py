"""Ternary models as Hugging Face checkpoints have them: codes, gains and tables by name.

Three forms of a projection become one, codes in {-1, 0, 1} and a scale that multiplies:
float masters, ternarised here as at every step of their training ("online"); codes with a scale
that multiplies (AutoBitLinear); codes with a scale that divides (BitLinear). Names that differ
between families become those of `names.py`, and Gemma's gains, which it stores less one, whole.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import ternary
from ..config import ModelConfig
from ..errors import FormatError, UnsupportedModel
from . import names
from .files import read_json
from .hf_config import model_config, with_projection_norms
from .safetensors import FLOATS, Checkpoint, SafetensorsFile
from .tables import check_finite, row_blocks
from .text import TextFiles, read_text_files, with_generation_config

_IF_MASTERS = (
    "if the weights are float masters without scales, set linear_class to autobitlinear and "
    "quantization_mode to online in config.json"
)
# No weights are so small or large; their products with activations stay normal float32.
_LEAST_SCALE = 1e-30


# Names of 1bitLLM's and of BitNet-embedding's checkpoints -> those of transformers.
_ALIASES = (
    (".inner_attn_ln.", ".attn_sub_norm."),
    (".ffn_layernorm.", ".ffn_sub_norm."),
    ("_proj.norm.", "_proj.rms_norm."),
)


class BitNetCheckpoint:
    """The ternary model in a directory: all that can be checked without reading it all.

    Raises FormatError for a damaged checkpoint, UnsupportedModel for one that we do not run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = self.path = directory
        where = directory / "config.json"
        if not os.path.exists(where):
            raise FormatError(f"{where}: missing; give the directory of a Hugging Face checkpoint")
        raw = read_json(where)
        config = with_generation_config(model_config(raw, str(where)), directory)
        self._tensors = Checkpoint(directory)
        self.config = with_projection_norms(config, self._tensors)
        self._divides, self._has_codes = _quantization(raw, self.config, where)
        self._stored = self._names_by_ours()
        self._projections = dict(names.all_projections(self.config))
        self._check_names()
        for name in self._projections:
            self._at(f"{name}.weight")
        for name, length in names.all_norms(self.config):
            self._array(name, (length,))
        self._check_tables()

    @property
    def label(self) -> str:
        """Where the model came from first, for people."""
        return self.directory.name

    @cached_property
    def text(self) -> TextFiles:
        """Tokenizer, chat template and how a text begins."""
        return read_text_files(self.directory, self.config)

    @property
    def float_dtype(self) -> str:
        """Type of the embedding and of the head, by safetensors' name."""
        return self._dtype(names.EMBEDDING)

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` of a projection and the scale `[1]` that multiplies them."""
        codes, scale = self._codes(name) if self._has_codes else self._master(name)
        return codes, np.array([scale], dtype=np.float32)

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of an RMSNorm."""
        file, stored = self._at(name)
        gain = self._float32(name, file.info(stored).shape)
        # Gemma's norms multiply by one more than they store; a projection's own norm does not.
        whole = self.config.model_type != "gemma3_text" or "_proj.rms_norm." in name
        return gain if whole else np.float32(1) + gain

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
        return ternary.absmean_ternary(self._float32(weight, self._projections[name]))

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
        scale = 1 / value if self._divides and value else value
        if not _LEAST_SCALE <= scale <= 1 / _LEAST_SCALE:
            raise FormatError(
                f"{self.directory}: '{name}' is {values[:4].tolist()}; "
                "expected one positive number; download it again"
            )
        return np.float32(scale)

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
        known = {names.EMBEDDING, names.HEAD, *(name for name, _ in names.all_norms(self.config))}
        for name in self._projections:
            known |= {f"{name}.weight", f"{name}.weight_scale"}
        foreign = sorted(n for n in self._stored if n not in known and "rotary_emb" not in n)
        if foreign:
            raise UnsupportedModel(
                f"{self.directory}: tensor {self._stored[foreign[0]][:80]!r} is not part of a "
                f"{self.config.model_type} model"
            )

    def _check_tables(self) -> None:
        shape = (self.config.vocab_size, self.config.hidden_size)
        embedding = self._array(names.EMBEDDING, shape)
        if self.float_dtype not in FLOATS:
            raise FormatError(
                f"{self.directory}: '{names.EMBEDDING}' is {self.float_dtype}; "
                f"expected a float: {', '.join(FLOATS)}"
            )
        tied = self.config.tie_word_embeddings
        if tied and names.HEAD not in self._stored:
            return
        head = self._array(names.HEAD, shape)
        head_dtype = self._dtype(names.HEAD)
        if head_dtype != self.float_dtype:
            raise FormatError(
                f"{self.directory}: '{names.HEAD}' is {head_dtype}, the embedding is "
                f"{self.float_dtype}; save both in one type"
            )
        if tied and not all(np.array_equal(head[r], embedding[r]) for r in row_blocks(head)):
            raise FormatError(
                f"{self.directory}: tie_word_embeddings is true, but {names.HEAD} differs from the "
                "embedding; set it to false in config.json"
            )
        self.forget()


def _quantization(raw: Mapping[str, Any], config: ModelConfig, where: Path) -> tuple[bool, bool]:
    """Whether the scales divide, and whether there are codes (or masters), by the config."""
    quantization = raw.get("quantization_config")
    if quantization is None:
        # 1bitLLM's and BitNet-embedding's models: their code ternarises whatever is loaded.
        if "BitnetForCausalLM" in (raw.get("architectures") or []) or config.projection_norm_eps:
            return False, False
        raise UnsupportedModel(
            f"{where}: no quantization_config, so this is a float model; "
            "give a checkpoint that was trained in ternary"
        )
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method != "bitnet":
        raise UnsupportedModel(
            f"{where}: quant_method {reprlib.repr(method)} is not supported; supported: 'bitnet'"
        )
    skipped = quantization.get("modules_to_not_convert") or []
    if not isinstance(skipped, list):
        raise FormatError(
            f"{where}: modules_to_not_convert is {reprlib.repr(skipped)}; expected a list"
        )
    if any(str(module).split(".")[-1].endswith("_proj") for module in skipped):
        raise UnsupportedModel(f"{where}: modules_to_not_convert keeps a projection in float")
    # What is left out takes the default of transformers' BitNetQuantConfig.
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise UnsupportedModel(f"{where}: unknown linear_class {reprlib.repr(linear_class)}")
    mode = quantization.get("quantization_mode", "offline")
    if mode not in ("online", "offline"):
        raise UnsupportedModel(f"{where}: unknown quantization_mode {reprlib.repr(mode)}")
    # BitLinear has codes whatever the mode and divides by its scale, 1/mean|W|; AutoBitLinear
    # multiplies, by mean|W|.
    divides = linear_class == "bitlinear"
    return divides, divides or mode == "offline"


def unpack_hf(stored: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    """Codes of transformers' layout: bits 2i, 2i+1 of stored row r hold row `i * stored_rows + r`.

    FormatError when a code is 3.
    """
    ternary.check_codes(stored)
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
