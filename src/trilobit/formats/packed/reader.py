"""Our file: a model packed for inference, one safetensors file with everything in it.

`docs/format.md` describes it. Loading is an mmap: the native code borrows the arrays from here.
"""

from __future__ import annotations

import math
import os
import reprlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, RequestError
from trilobit.formats import json_text, pooling
from trilobit.formats.adapter import not_a_model
from trilobit.formats.dtypes import DTYPES, FLOATS, as_float32
from trilobit.formats.files import OpenFile
from trilobit.formats.packed.checksums import checksums_of
from trilobit.formats.packed.form import FORMAT, VERSION, declare, declare_screen
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.formats.text_files import TextFiles
from trilobit.layouts import native_layout, native_order
from trilobit.machine import memory_bytes
from trilobit.model import packing, tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import LAYOUTS, Layout, Order
from trilobit.sampling import DEFAULTS, SamplingParams

# Up to version 4, a screen has another layout, and is not read; versions 2 and 3 have all matrices
# in groups; version 2 has no checksums.
_READABLE = ("2", "3", "4", VERSION)

# Rows of float tables from this size on are read from the file, where they are wanted one by one:
# touched in the mapping, each would draw in up to 2 MB. A read costs 1 µs, which matters only
# beside the steps of models so small that their tables matter to nobody's memory.
_IN_FILE_BYTES = 64_000_000
# Of the physical memory, a file that is certain to stay there whole.
_MEMORY_SHARE = 0.75


class PackedModel:
    """An open packed file, checked: config, arrays by name, tokenizer.

    Raises FormatError for a file that is not ours, damaged, or not what its config says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        if os.path.isdir(path):  # unlike Path.is_dir, no error for an impossible name
            if not os.path.exists(path / "config.json"):
                raise not_a_model(
                    Path(path),
                    "a directory without a config.json, so no model; give a packed file, or the "
                    "directory of a checkpoint",
                )
            raise FormatError(
                f"{path}: a directory; pack the checkpoint first: trilobit convert {path} OUT"
            )
        if not os.path.exists(path):
            raise FormatError(
                f"{os.fspath(path)!r}: not a possible file name; check the name"
                if "\0" in os.fspath(path)
                else f"{path}: no such file or folder; check the path, or give the name of a "
                "model: `trilobit list --names` shows them"
            )
        self.file = SafetensorsFile(path)
        self.path = path
        metadata = self.file.metadata
        if metadata.get("format") != FORMAT:
            raise FormatError(
                f"{path}: a safetensors file, but not a packed Trilobit model; "
                "pack its directory: trilobit convert DIRECTORY OUT"
            )
        version = metadata.get("version")
        if version not in _READABLE:
            raise FormatError(
                f"{path}: version {reprlib.repr(version)} of the packed format, this Trilobit "
                f"reads {', '.join(_READABLE)}; upgrade Trilobit or convert the model again"
            )
        try:
            raw = json_text.parse(metadata["config"])
        except (KeyError, json_text.JSONFault):
            raise FormatError(
                f"{path}: no readable config in the metadata; convert the model again"
            ) from None
        if not isinstance(raw, dict):
            raise FormatError(
                f"{path}: the config in the metadata is not an object; convert the model again"
            )
        try:
            self.config = ModelConfig.from_dict(raw)
        except FormatError as error:
            raise FormatError(f"{path}: {error}; convert the model again") from None
        layout = metadata.get("layout", "2-bit")
        if layout not in LAYOUTS:
            raise FormatError(
                f"{path}: layout {reprlib.repr(layout)} of the weights, this Trilobit reads "
                f"{', '.join(LAYOUTS)}; upgrade Trilobit or convert the model again"
            )
        if layout != "2-bit" and self.config.scales == "group":
            raise FormatError(
                f"{path}: claims the {layout} layout and scales by group, which need the 2-bit "
                "layout; the file is damaged: convert the model again"
            )
        self.layout: Layout = layout
        self._check_tensors()
        tokenizer = tensor_names.TOKENIZER in self.file
        self.text = TextFiles(
            tokenizer=self.file.array(tensor_names.TOKENIZER).tobytes() if tokenizer else None,
            chat_template=metadata.get("chat_template"),
            add_bos=metadata.get("add_bos") == "true",
            pooling=self._pooling(),
            sampling=self._sampling(),
        )

    def arrays(
        self,
        *,
        screened: bool = False,
        headless: bool = False,
        layout: Layout | None = None,
        threads: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Every tensor of the model as a view of the file (BF16 as uint16); not the tokenizer.

        screened: with the screen of the head, whose table is then left on disk until rows of it
        are wanted, as an embedding is that is no head. headless: without the head. layout: of the
        ternary weights, which are copied, by `threads`, if it is not the file's. Checks the values
        too: FormatError for a scale or gain that is not finite, for bytes that are no ternary
        weights and for padding that is not zero.
        """
        left_out = {tensor_names.TOKENIZER, tensor_names.CHECKSUMS, *tensor_names.OLD_SCREEN}
        if not screened:
            left_out |= set(tensor_names.SCREEN)
        tables = set(tensor_names.float_tables(self.config))
        if not screened and not headless:
            tables.discard(tensor_names.tables(self.config)[-1])  # all of it is read
        arrays = {}
        for name in self.file.tensors:
            if name not in left_out and not (headless and name.startswith("lm_head.")):
                arrays[name] = self.file.array(name)
        self.file.populate(name for name in arrays if name not in tables)
        for name, _ in tensor_names.all_norms(self.config):
            if not np.isfinite(arrays[name]).all():
                raise FormatError(
                    f"{self.path}: tensor '{name}' holds NaN or infinity; convert again"
                )
        if screened:
            for name in tensor_names.SCREEN:
                if name.endswith(".codes"):
                    continue
                if not (np.isfinite(arrays[name]).all() and (arrays[name] >= 0).all()):
                    raise FormatError(
                        f"{self.path}: '{name}' holds NaN, infinity or a negative number; "
                        "convert again"
                    )
        for name, (rows, columns) in tensor_names.all_projections(self.config):
            if f"{name}.weight" not in arrays:
                continue
            dtype = self.file.info(f"{name}.weight_scale").dtype
            self.check_scales(name, as_float32(arrays[f"{name}.weight_scale"], dtype))
            if not _codes_are_ternary(arrays[f"{name}.weight"], self.layout):
                raise FormatError(
                    f"{self.path}: '{name}' has a weight code that is no ternary value; "
                    "the file is damaged: convert or download it again"
                )
            try:
                packing.check_padding(
                    arrays[f"{name}.weight"], rows, columns, self.layout, self.order(name)
                )
            except FormatError as error:
                raise FormatError(f"{self.path}: '{name}': {error}") from None
            wanted = tensor_names.order(self.config, name)
            forms = ((self.layout, self.order(name)), (layout or self.layout, wanted))
            if forms[0] != forms[1]:
                weights = arrays[f"{name}.weight"]
                arrays[f"{name}.weight"] = _repacked(weights, rows, columns, *forms, threads)
                self.file.forget([f"{name}.weight"])
        return arrays

    def order(self, name: str) -> Order:
        """How the packed bytes of a projection follow each other in this file: its shape tells."""
        tensor = f"{name}.weight"
        lines = tensor in self.file and len(self.file.info(tensor).shape) == 2
        return tensor_names.alone(self.config, name) if lines else "groups"

    def check_scales(self, name: str, scales: NDArray[np.float32]) -> None:
        """FormatError for scales of a matrix that are infinite, not numbers or not positive."""
        # A row or group of nothing but zeros may have the scale 0.
        least = np.float32(0 if scales.size > 1 else np.finfo(np.float32).smallest_subnormal)
        good = (scales >= least) & (scales < np.inf)  # NaN is neither
        if not good.all():
            wrong = float(scales[~good].flat[0])
            raise FormatError(f"{self.path}: the scale of '{name}' is {wrong}; convert again")

    def row_files(self) -> dict[str, tuple[OpenFile, int]]:
        """The open file, and the place in it, of each table whose rows are to be read from there.

        Its array in `arrays` is for who reads all of it.
        """
        return {
            name: (self.file.opened, self.file.info(name).begin)
            for name in tensor_names.float_tables(self.config)
            if self.file.info(name).size_bytes >= _IN_FILE_BYTES
        }

    def fetch_rows(self) -> None:
        """Have those tables read into the system's file cache in the background.

        Rows come at random, so each that is not there yet waits for the disk. Not done for a file
        so large that its weights and the tables would drive each other out of the memory.
        """
        memory = memory_bytes()
        if memory is None or self.path.stat().st_size > memory * _MEMORY_SHARE:
            return
        for name, (file, begin) in self.row_files().items():
            file.fetch(begin, begin + self.file.info(name).size_bytes)

    def forget_head(self) -> None:
        """Let go of what was mapped of the head's table; it stays in the system's file cache."""
        self.file.forget(tensor_names.tables(self.config)[-1:])

    @property
    def has_screen(self) -> bool:
        """Whether the file holds a screen of the head, which can be used."""
        return tensor_names.SCREEN[0] in self.file

    @property
    def has_old_screen(self) -> bool:
        """Whether it holds one of a version before, which cannot."""
        return tensor_names.OLD_SCREEN[0] in self.file

    def _pooling(self) -> pooling.Pooling | None:
        text = self.file.metadata.get("pooling")
        try:
            return None if text is None else pooling.from_json(text, self.config)
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from None

    def _sampling(self) -> SamplingParams:
        try:
            said = json_text.parse(self.file.metadata.get("sampling", "{}"))
            if not isinstance(said, dict) or not said.keys() <= DEFAULTS.keys():
                raise RequestError(f"has other fields than {', '.join(DEFAULTS)}")
            return SamplingParams(**said)
        except (json_text.JSONFault, RequestError) as error:
            raise FormatError(
                f"{self.path}: the sampling in the metadata: {error}; convert the model again"
            ) from None

    def fingerprint(self, also: str) -> str:
        """16 hexadecimal digits of what the file holds, by its checksums, and of a text."""
        digest = blake2b(also.encode(), digest_size=8)
        digest.update(checksums_of(self.file))
        return digest.hexdigest()

    def _check_tensors(self) -> None:
        config = self.config
        wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
            name: ((length,), ("F32",)) for name, length in tensor_names.all_norms(config)
        }
        for name in tensor_names.float_tables(config):
            wanted[name] = ((config.vocab_size, config.hidden_size), FLOATS)
        scale_types = FLOATS if config.scales == "group" else ("F32",)
        for name, (rows, columns) in tensor_names.all_projections(config):
            wanted[f"{name}.weight"] = (
                packing.packed_shape(rows, columns, self.layout, self.order(name)),
                ("U8",),
            )
            wanted[f"{name}.weight_scale"] = (
                tensor_names.scale_shape(config, rows, columns),
                scale_types,
            )
        if any(name in self.file for name in tensor_names.SCREEN):
            wanted |= {name: (shape, (dtype,)) for name, dtype, shape in declare_screen(config)}
        if tensor_names.TOKENIZER in self.file:
            wanted[tensor_names.TOKENIZER] = (
                (self.file.info(tensor_names.TOKENIZER).size_bytes,),
                ("U8",),
            )
        if tensor_names.CHECKSUMS in self.file:
            wanted[tensor_names.CHECKSUMS] = (self.file.info(tensor_names.CHECKSUMS).shape, ("U8",))
        for name, (shape, dtypes) in wanted.items():
            if name not in self.file:
                raise FormatError(f"{self.path}: tensor '{name}' is missing; convert again")
            info = self.file.info(name)
            if info.shape != shape or info.dtype not in dtypes:
                raise FormatError(
                    f"{self.path}: tensor '{name}' is {info.dtype} {list(info.shape)}; the config "
                    f"asks for {'/'.join(dtypes)} {list(shape)}; convert again"
                )
        for name in wanted:
            info = self.file.info(name)
            if info.begin % DTYPES[info.dtype].itemsize:
                raise FormatError(f"{self.path}: tensor '{name}' is not aligned; convert again")
        known = set(wanted)
        if self.file.metadata["version"] != VERSION:
            known |= set(tensor_names.OLD_SCREEN)
        foreign = sorted(set(self.file.tensors) - known)
        if foreign:
            raise FormatError(f"{self.path}: unknown tensor {foreign[0][:80]!r}; convert again")


def _repacked(
    packed: NDArray[np.uint8],
    rows: int,
    columns: int,
    old: tuple[Layout, Order],
    new: tuple[Layout, Order],
    threads: int,
) -> NDArray[np.uint8]:
    from trilobit import _native

    return _native.repacked(
        packed.reshape(-1),
        rows,
        columns,
        native_layout(old[0]),
        native_layout(new[0]),
        native_order(old[1]),
        native_order(new[1]),
        threads,
    ).reshape(packing.packed_shape(rows, columns, *new))


def _codes_are_ternary(packed: NDArray[np.uint8], layout: Layout) -> bool:
    from trilobit import _native

    return bool(_native.check_codes(packed.reshape(-1), 2, native_layout(layout)))


def tensor_bytes(config: ModelConfig) -> int:
    """Bytes of all tensors of a packed file of this shape, without a tokenizer; about."""
    declared = declare(config, "BF16", TextFiles())
    return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in declared)
