"""A model with an adapter in its weights: added to its float masters, which then round anew.

What comes out is another ternary model. It is not exactly base and adapter: codes change only where
what is added carries a master past the middle between two of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError
from trilobit.formats.adapter import Adapter, chat_template_of
from trilobit.formats.hf.reader import BitNetCheckpoint
from trilobit.formats.source import Source
from trilobit.model import ternary

if TYPE_CHECKING:
    from trilobit.formats.tables import Table
    from trilobit.formats.text_files import TextFiles
    from trilobit.model.config import ModelConfig


class Merged:
    """A `Source` of a checkpoint with masters, and an adapter of it.

    Raises what `Adapter` does, and RequestError for a model without masters.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        if not isinstance(source, BitNetCheckpoint) or not source.has_masters:
            raise RequestError(
                f"{source.path}: has codes only, and an adapter merges into float masters; give "
                "the checkpoint that has them, or run it beside: trilobit run MODEL --adapter DIR"
            )
        self._source = source
        self._adapter = Adapter(folder, source.config, source.gain)
        template = chat_template_of(folder)
        self._text = (
            source.text if template is None else replace(source.text, chat_template=template)
        )

    @property
    def path(self) -> Path:
        """Of the model."""
        return self._source.path

    @property
    def label(self) -> str:
        """Where the model came from, for people."""
        return self._source.label

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self._source.config

    @property
    def text(self) -> TextFiles:
        """Its tokenizer, and the adapter's chat template if it has one."""
        return self._text

    @property
    def float_dtype(self) -> str:
        """Type of embedding and head."""
        return self._source.float_dtype

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` and their scale, of masters with the adapter in them."""
        if name not in self._adapter:
            return self._source.projection(name)
        codes, scale = ternary.absmean_ternary(
            self._source.master(name) + self._adapter.delta(name)
        )
        return codes, np.array([scale], dtype=np.float32)

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of a norm."""
        return self._source.gain(name)

    def table(self, name: str) -> Table:
        """Embedding or head."""
        return self._source.table(name)

    def forget(self) -> None:
        """Let go of the memory of what was read so far."""
        self._source.forget()
