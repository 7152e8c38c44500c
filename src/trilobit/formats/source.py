"""What every form of a model is read as, so that each form needs one reader and one writer.

A reader normalises once: layout, byte order and the meaning of scales are gone behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trilobit.formats.tables import Table
from trilobit.formats.text_files import TextFiles
from trilobit.model.config import ModelConfig


class Source(Protocol):
    """A model by name of its tensors (`model/tensor_names.py`), read one at a time.

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
