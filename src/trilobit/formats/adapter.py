"""LoRA adapters as peft lays them out: a folder with adapter_config.json and its safetensors.

An adapter adds `B(A x) · α/r` to the output of ternary matrices, in float32, where x is what a
matrix is given before it is quantised. The base stays as it is. Source: Hu et al., arXiv
2106.09685; peft (https://github.com/huggingface/peft), whose names these are.
"""

# I inputs, O outputs, R rank

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.dtypes import FLOATS
from trilobit.formats.files import read_json, read_text
from trilobit.formats.json_text import shown
from trilobit.formats.run_folder import why_none_in
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
BASE = "trilobit.base"  # in the metadata of adapters that we train: `base_digest` of their model

_PREFIX = "base_model.model."
_PARTS = (".lora_A.weight", ".lora_B.weight")
_MOST_RANK = 4096  # beyond it an adapter is no low rank of anything that we run
_RANK_PAD = 16  # kFloatPad of the core
# What peft can also do, by keys that are empty or false where it is not done.
_VARIANTS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
)
# Ways to begin that change the weights of the base as well.
_OTHER_BASES = ("pissa", "olora", "corda", "loftq")


class Adapter:
    """An adapter of a model of this shape, read and checked.

    gain: gives the base's gains by name, to tell whether it is the model that was adapted, where
    the adapter says so.
    Raises FormatError for what is damaged or does not fit the model, UnsupportedModel for what peft
    can do and we do not.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: ModelConfig,
        gain: Callable[[str], NDArray[np.float32]],
    ) -> None:
        self.folder = Path(folder)
        if config.projection_norm_eps is not None:
            raise UnsupportedModel(
                f"{folder}: the model's matrices begin with norms of their own, before which peft "
                "would add an adapter, and behind which it belongs; merge it where it was trained"
            )
        if not os.path.isdir(folder) or not os.path.exists(self.folder / CONFIG):
            raise FormatError(
                f"{shown(os.fspath(folder))}: no adapter; give a folder with {CONFIG} and {WEIGHTS}"
            )
        self.rank, scale = _rank_and_scale(self.folder / CONFIG)
        file = SafetensorsFile(self.folder / WEIGHTS)
        self._check_base(file, config, gain)
        self._pairs = dict(self._read(file, config, scale))
        if not self._pairs:
            raise FormatError(f"{file.path}: adapts nothing; train it again")

    def __contains__(self, name: str) -> bool:
        return name in self._pairs

    @cached_property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What the core takes: NAME.adapter_a `[R, I]` and NAME.adapter_b `[O, R]`.

        The scale is in B, and the rank is padded with zeros.
        """
        arrays = {}
        for name, (a_RI, b_OR) in self._pairs.items():
            pad = -len(a_RI) % _RANK_PAD
            arrays[f"{name}.adapter_a"] = np.pad(a_RI, ((0, pad), (0, 0)))
            arrays[f"{name}.adapter_b"] = np.pad(b_OR, ((0, 0), (0, pad)))
        return arrays

    @property
    def size_bytes(self) -> int:
        """Of `arrays`."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all numbers."""
        digest = blake2b(digest_size=8)
        for name, pair in sorted(self._pairs.items()):
            digest.update(name.encode())
            for array in pair:
                digest.update(array.tobytes())
        return digest.hexdigest()

    def delta(self, name: str) -> NDArray[np.float32]:
        """What it adds to the weights of a matrix `[O, I]`."""
        a_RI, b_OR = self._pairs[name]
        delta = np.zeros((len(b_OR), a_RI.shape[1]), dtype=np.float32)
        for b_O, a_I in zip(b_OR.T, a_RI, strict=True):
            delta += b_O[:, None] * a_I  # not by BLAS, whose sums differ between machines
        return delta

    def _check_base(
        self,
        file: SafetensorsFile,
        config: ModelConfig,
        gain: Callable[[str], NDArray[np.float32]],
    ) -> None:
        base = file.metadata.get(BASE)
        if base is not None and base != base_digest(config, gain):
            raise FormatError(
                f"{file.path}: was trained on another model; give the one that {CONFIG} names"
            )

    def _read(
        self, file: SafetensorsFile, config: ModelConfig, scale: np.float32
    ) -> Iterator[tuple[str, tuple[NDArray[np.float32], NDArray[np.float32]]]]:
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(config.num_hidden_layers):
            shapes |= tensor_names.projections(config, layer)
        wanted = {f"{_PREFIX}{name}{part}": name for name in shapes for part in _PARTS}
        for tensor in file.tensors:
            if tensor not in wanted:
                raise FormatError(
                    f"{file.path}: tensor {shown(tensor)} is no part of a LoRA adapter of this "
                    "model; give the model that was adapted"
                )
        for name in dict.fromkeys(wanted[tensor] for tensor in file.tensors):
            a_RI, b_OR = (self._floats(file, f"{_PREFIX}{name}{part}") for part in _PARTS)
            rows, columns = shapes[name]
            if a_RI.shape != (self.rank, columns) or b_OR.shape != (rows, self.rank):
                raise FormatError(
                    f"{file.path}: '{name}' is adapted by {list(b_OR.shape)} times "
                    f"{list(a_RI.shape)}, and the model's matrix is [{rows}, {columns}] and the "
                    f"rank {self.rank}; give the model that was adapted"
                )
            with np.errstate(over="ignore"):
                scaled = b_OR * scale
            if not np.isfinite(scaled).all():
                raise FormatError(f"{file.path}: '{name}' is scaled beyond float32; train it again")
            yield name, (a_RI, scaled)

    def _floats(self, file: SafetensorsFile, name: str) -> NDArray[np.float32]:
        info = file.info(name)
        if info.dtype not in FLOATS or len(info.shape) != 2:
            raise FormatError(
                f"{file.path}: tensor '{name}' is {info.dtype} {list(info.shape)}; expected a "
                "matrix of floats"
            )
        values = np.ascontiguousarray(file.float32(name))
        if not np.isfinite(values).all():
            raise FormatError(f"{file.path}: '{name}' holds NaN or infinity; train it again")
        return values


def not_a_model(folder: Path, otherwise: str) -> FormatError:
    """The error of a folder without a config.json: `otherwise`, where nothing better is known."""
    if os.path.exists(folder / CONFIG):
        otherwise = "is an adapter, which runs beside its model; give the model, and --adapter DIR"
    return FormatError(f"{folder}: {why_none_in(folder) or otherwise}")


def chat_template_of(folder: str | os.PathLike[str]) -> str | None:
    """The chat template beside an adapter, which stands instead of the base's; None: none there."""
    path = Path(folder) / TEMPLATE
    return read_text(path) if os.path.exists(path) else None


def base_digest(config: ModelConfig, gain: Callable[[str], NDArray[np.float32]]) -> str:
    """16 hexadecimal digits of a model's norms, which are the same in every form of it."""
    digest = blake2b(digest_size=8)
    for name, _ in tensor_names.all_norms(config):
        digest.update(gain(name).astype("<f4").tobytes())
    return digest.hexdigest()


def _rank_and_scale(path: Path) -> tuple[int, np.float32]:
    """r, and α/r or α/√r, of adapter_config.json; an error for what is no plain LoRA."""
    values: dict[str, Any] = read_json(path)
    if values.get("peft_type") != "LORA":
        raise UnsupportedModel(
            f"{path}: peft_type is {shown(str(values.get('peft_type')))}; only LORA is run"
        )
    for key in _VARIANTS:
        if values.get(key):
            raise UnsupportedModel(f"{path}: {key} is set, and only plain LoRA is run; merge it")
    if values.get("bias", "none") != "none":
        raise UnsupportedModel(f"{path}: bias is {shown(str(values['bias']))}; only 'none' is run")
    begun = values.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(_OTHER_BASES):
        raise UnsupportedModel(
            f"{path}: init_lora_weights is {shown(begun)}, which changes the base as well; save "
            "it as plain LoRA (peft: path_initial_model_for_weight_conversion)"
        )
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MOST_RANK:
        raise FormatError(f"{path}: r is {shown(str(rank))}; it must be from 1 to {_MOST_RANK}")
    if (
        not isinstance(alpha, int | float)
        or isinstance(alpha, bool)
        or not abs(alpha) <= float(np.finfo(np.float32).max)
    ):
        raise FormatError(f"{path}: lora_alpha is {shown(str(alpha))}; it must be a number")
    return rank, np.float32(alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))
