"""Writes the packed file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trilobit.formats.dtypes import as_float32, from_float32
from trilobit.formats.packed.checksums import ChecksummedWriter
from trilobit.formats.packed.form import declare, metadata
from trilobit.formats.safetensors import SafetensorsWriter
from trilobit.formats.source import Source
from trilobit.formats.tables import Table
from trilobit.formats.text_files import TextFiles
from trilobit.model import packing, screen, tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout
from trilobit.progress import Steps

# Of the head in memory as floats at once, some seven times over; a multiple of a block's rows.
_SCREEN_ROWS = 512


def packed_writer(
    path: Path,
    config: ModelConfig,
    float_dtype: str,
    text: TextFiles,
    source: str,
    *,
    screened: bool = True,
    layout: Layout = "2-bit",
) -> ChecksummedWriter:
    """A writer of a packed file; tensors must then be written in the order of `declare`."""
    declared = declare(config, float_dtype, text, screened=screened, layout=layout)
    return ChecksummedWriter(path, declared, metadata(config, text, source, layout))


def write_screen(
    file: SafetensorsWriter,
    head: Table,
    dtype: str,
    forget: Callable[[], None] = lambda: None,
) -> None:
    """Write the screen of a head `[vocab, hidden]` (BF16 as uint16), some rows at a time.

    forget: called after each, to let go of the rows of a mapped file.
    """
    some = []
    for row in range(0, len(head), _SCREEN_ROWS):
        planes = screen.screen(as_float32(head[row : row + _SCREEN_ROWS], dtype))
        some.append([part for plane in planes.values() for part in plane])
        forget()
    for name, parts in zip(tensor_names.SCREEN, zip(*some, strict=True), strict=True):
        file.write(name, np.concatenate(parts))


def write_packed(
    source: Source, out: Path, progress: Steps | None = None, layout: Layout = "2-bit"
) -> None:
    """Write the one file that runs. Raises what `convert` does."""
    config, text = source.config, source.text
    projections = [name for name, _ in tensor_names.all_projections(config)]
    tables, grouped = tensor_names.float_tables(config), config.scales == "group"
    screened = bool(tables) and text.pooling is None  # embeddings need no head
    scales: dict[str, NDArray[np.float32]] = {}
    with packed_writer(
        out, config, source.float_dtype, text, source.label, screened=screened, layout=layout
    ) as file:
        for done, name in enumerate(projections):
            codes, scales[name] = source.projection(name)
            file.write(
                f"{name}.weight", packing.pack(codes, layout, tensor_names.order(config, name))
            )
            source.forget()
            if progress:
                progress(done + 1, len(projections))
        for name, _ in tensor_names.all_norms(config):
            file.write(name, source.gain(name))
        if screened:  # the last one is the head, whether or not it is the embedding too
            head = source.table(tables[-1])
            write_screen(file, head, source.float_dtype, source.forget)
        for name in projections:
            stored = from_float32(scales[name], source.float_dtype) if grouped else scales[name]
            file.write(f"{name}.weight_scale", stored)
        for name in tables:
            file.write(name, source.table(name))
            source.forget()
        if text.tokenizer is not None:
            file.write(tensor_names.TOKENIZER, np.frombuffer(text.tokenizer, dtype=np.uint8))
