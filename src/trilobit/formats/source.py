"""What every form of a model is read as, so that each form needs one reader and one writer.

A reader normalises once: layout, byte order and the meaning of scales are gone behind it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import FormatError
from .gguf import is_gguf
from .gguf.ternary_blocks import I2SLayout
from .tables import Table
from .text import TextFiles


class Source(Protocol):
    """A model by name of its tensors (`formats/names.py`), read one at a time.

    Opening one checks all that can be checked without reading the tensors; every method raises
    FormatError for what shows only then.
    """

    @property
    def path(self) -> Path:
        """File or directory, for messages."""

    @property
    def label(self) -> str:
        """Where the model came from first, for people."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""

    @property
    def text(self) -> TextFiles:
        """Its tokenizer and chat template."""

    @property
    def float_dtype(self) -> str:
        """Type of embedding, head and group scales, by safetensors' name: BF16, F16 or F32."""

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` in {-1, 0, 1} and the scales that multiply them.

        Also of ternary tables. The scales have the shape of `names.scale_shape`; those of groups
        are numbers that `float_dtype` holds.
        """

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of a norm, finite."""

    def table(self, name: str) -> Table:
        """Float embedding or head `[vocab, hidden]` in `float_dtype` (BF16 as uint16), finite."""

    def forget(self) -> None:
        """Let go of the memory of what was read so far."""


def open_source(path: str | os.PathLike[str], *, i2s_layout: I2SLayout | None = None) -> Source:
    """Open a model in whatever form it is: Hugging Face directory, GGUF or packed file.

    Raises FormatError for what is no model, UnsupportedModel for one that we do not run.
    """
    path = Path(path)
    # os.path: unlike Path's methods it has no errors of its own for names that cannot be.
    if os.path.isdir(path):
        from .bitnet import BitNetCheckpoint

        return BitNetCheckpoint(path)
    if not os.path.exists(path):
        raise FormatError(
            f"{path}: missing; give a packed or GGUF file, or a checkpoint's directory"
        )
    if is_gguf(path):
        from .gguf.model import GGUFModel

        return GGUFModel(path, i2s_layout)
    from .packed_source import PackedSource

    return PackedSource(path)
