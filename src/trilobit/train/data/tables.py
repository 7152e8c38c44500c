"""Rows of Parquet files, and of folders that `datasets` saved: what pyarrow reads, as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import open_file, read_bytes

PARQUET = ".parquet"
# What `save_to_disk` writes beside the shards of a dataset, and beside several datasets.
_ABOUT_DATASET, _ABOUT_SPLITS = "state.json", "dataset_dict.json"
_MAX_ABOUT_BYTES = 1 << 24
# Rows that are taken out of a file at once; a row is a document.
_ROWS = 256


def is_table(path: Path) -> bool:
    """Whether a name of a recipe is a Parquet file or a folder."""
    return path.suffix == PARQUET or path.is_dir()


def shards(path: Path) -> list[Path]:
    """The files that hold what a name stands for: of a folder its shards, in their order.

    Of a folder with several datasets, that named `train`.
    Raises RecipeError for a folder that `datasets` did not save.
    """
    if not path.is_dir():
        return [path]
    try:
        if (path / _ABOUT_SPLITS).exists():
            splits = json.loads(read_bytes(path / _ABOUT_SPLITS, _MAX_ABOUT_BYTES))["splits"]
            if "train" not in splits:
                raise RecipeError(
                    f"{path}: holds the datasets {', '.join(map(str, splits))}, and none is named "
                    f"train; name one of them: {path / str(splits[0])}"
                )
            path = path / "train"
        about = dict(json.loads(read_bytes(path / _ABOUT_DATASET, _MAX_ABOUT_BYTES)))
        names = [Path(entry["filename"]).name for entry in about["_data_files"]]
        if any("indices" in key and value for key, value in about.items()):
            raise RecipeError(
                f"{path}: its rows are chosen by indices, as old versions of datasets saved them; "
                "save it again by flatten_indices().save_to_disk()"
            )
    except (FormatError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RecipeError(
            f"{path}: no folder that datasets saved (by save_to_disk); name the files in it"
        ) from error
    return [path / name for name in names]


def rows(path: Path, key: str, also: tuple[str, ...] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number from 0 and values of every row.

    key: the column that there must be. also: columns that are read where they are.
    Raises RecipeError for what is damaged, is no table, or has no such column.
    """
    if find_spec("pyarrow") is None:
        raise RecipeError(f"{path}: reading it needs the package 'pyarrow'; pip install pyarrow")
    number = 0
    for shard in shards(path):
        with _told(shard):
            for batch in _batches(shard, key, also):
                try:
                    found = batch.to_pylist()
                except UnicodeDecodeError:
                    found = _up_to_the_unreadable(batch, shard, number)
                for values in found:
                    yield number, values
                    number += 1


@contextmanager
def _told(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
        # Ours are not among them: a RecipeError is none of these.
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{path}: is no whole {_format(path)} file ({reason}); fetch it again"
        ) from error


def _format(path: Path) -> str:
    return "Parquet" if path.suffix == PARQUET else "Arrow"


def _batches(path: Path, key: str, also: tuple[str, ...]) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    with open_file(path)[0] as file:
        if path.suffix == PARQUET:
            table = parquet.ParquetFile(file)
            columns = _columns(path, table.schema_arrow.names, key, also)
            yield from table.iter_batches(_ROWS, columns=columns, use_threads=False)
            return
        stream = pyarrow.ipc.open_stream(file)
        columns = _columns(path, stream.schema.names, key, also)
        for batch in stream:
            chosen = batch.select(columns)
            for start in range(0, chosen.num_rows, _ROWS):
                yield chosen.slice(start, _ROWS)


def _columns(path: Path, names: list[str], key: str, also: tuple[str, ...]) -> list[str]:
    if key not in names:
        there = ", ".join(names[:20])
        raise RecipeError(f"{path}: has no column '{key}'; it has {there[:300] or 'none'}")
    return [name for name in dict.fromkeys((key, *also)) if name in names]


def _up_to_the_unreadable(batch: Any, path: Path, number: int) -> Iterator[dict[str, Any]]:
    for place in range(batch.num_rows):
        try:
            (values,) = batch.slice(place, 1).to_pylist()
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path}: row {number + 1} is not UTF-8; convert the file, or remove the row"
            ) from error
        yield values
        number += 1
