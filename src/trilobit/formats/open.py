"""A model in whatever form it is, as a `Source`."""

from __future__ import annotations

import os
from pathlib import Path

from trilobit.errors import FormatError
from trilobit.formats.gguf import is_gguf
from trilobit.formats.gguf.ternary_blocks import I2SLayout
from trilobit.formats.source import Source


def open_source(path: str | os.PathLike[str], *, i2s_layout: I2SLayout | None = None) -> Source:
    """Open a model in whatever form it is: Hugging Face directory, GGUF or packed file.

    Raises FormatError for what is no model, UnsupportedModel for one that we do not run.
    """
    path = Path(path)
    # os.path: unlike Path's methods it has no errors of its own for names that cannot be.
    if os.path.isdir(path):
        from trilobit.formats.hf.reader import BitNetCheckpoint

        return BitNetCheckpoint(path)
    if not os.path.exists(path):
        raise FormatError(
            f"{path}: missing; give a packed or GGUF file, or a checkpoint's directory"
        )
    if is_gguf(path):
        from trilobit.formats.gguf.reader import GGUFModel

        return GGUFModel(path, i2s_layout)
    from trilobit.formats.packed.source import PackedSource

    return PackedSource(path)
