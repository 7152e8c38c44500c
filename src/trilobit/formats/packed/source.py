"""The packed file, read as any other form is: to write it in another."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.tables import check_finite
from trilobit.model import packing, tensor_names


class PackedSource(PackedModel):
    """A packed file as a `Source`. Raises FormatError as PackedModel does."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._projections = dict(tensor_names.all_projections(self.config))

    @property
    def label(self) -> str:
        """Where the model came from first, for people."""
        return self.file.metadata.get("source", self.path.stem)

    @property
    def float_dtype(self) -> str:
        """Type of embedding and head, by safetensors' name."""
        embedding = tensor_names.EMBEDDING
        if self.config.ternary_embeddings:  # then of the group scales
            embedding = embedding.replace(".weight", ".weight_scale")
        return self.file.info(embedding).dtype

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` and the scales that multiply them."""
        scales = self.file.float32(f"{name}.weight_scale")
        self.check_scales(name, scales)
        try:
            packed = self.file.array(f"{name}.weight")
            shape = self._projections[name]
            return packing.unpack(packed, *shape, self.layout, self.order(name)), scales
        except FormatError as error:
            raise FormatError(f"{self.path}: '{name}': {error}") from None

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of a norm."""
        gain = self.file.float32(name)
        if not np.isfinite(gain).all():
            raise FormatError(f"{self.path}: tensor '{name}' holds NaN or infinity; convert again")
        return gain

    def table(self, name: str) -> NDArray[Any]:
        """Embedding or head as a view of the file (BF16 as uint16), without NaN or infinity."""
        table = self.file.array(name)
        check_finite(table, self.float_dtype, f"{self.path}: '{name}'", self.forget)
        return table

    def forget(self) -> None:
        """Let go of the memory of what was read so far."""
        self.file.forget()
