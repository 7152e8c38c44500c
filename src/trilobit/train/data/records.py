"""Records of a run's files, one after another: lines of .jsonl, rows of tables; lines of .txt.

Everything is a stream: a corpus may be larger than the memory. A line is not: it is one document,
or becomes part of one, so its length is bounded, packed or not.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import open_file
from trilobit.train.data.tables import is_table, rows, shards
from trilobit.train.recipes import Recipe
from trilobit.train.sums import sum_of

# The Bible has 4.4 MB. A tokenizer needs a hundred times as much memory.
MAX_LINE_BYTES = 8 << 20

# Of files too small for anything else, as with a single record: the first one is always held out.
ALL_HELD_OUT = "what is there is all held out; add some, or name another file as data.validation"


class Record(NamedTuple):
    """One line or row, counted from 0; where: it stands, for messages."""

    number: int
    where: str
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """Of a key; RecipeError where it is none that UTF-8 can spell."""
        return checked(self.values.get(key), key, self.where)


def suffix(path: Path) -> str:
    """What a file's name ends in, packed or not."""
    return (path.with_suffix("") if path.suffix == ".xz" else path).suffix


def records(path: Path, what: str, key: str, also: tuple[str, ...] = ()) -> Iterator[Record]:
    """Every record of a .jsonl, of a Parquet file, or of a folder that `datasets` saved.

    what: such records are, for messages. key: all have it. also: keys that some may have.
    Raises RecipeError when the file is missing, no regular one, not UTF-8, or not what its name
    says, for a line beyond MAX_LINE_BYTES, and for a record without the key.
    """
    if is_table(path):
        try:
            for number, values in rows(path, key, also):
                yield Record(number, f"{path}: row {number + 1}", values)
        except FormatError as error:
            raise unreadable(path, error) from error
        return
    if suffix(path) != ".jsonl":
        raise RecipeError(
            f"{path}: a file of {what} has a name that ends in .jsonl (or .xz) or .parquet"
        )
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record[key], record.get(key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: line {number + 1} is no JSON object with a '{key}'; mend or remove it"
            ) from error
        yield Record(number, f"{path}: line {number + 1}", record)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 0; a byte order mark and carriage returns dropped."""
    number = 0
    with _opened(path) as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise _too_long(f"{path}: line {number + 1}")
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecipeError(
                    f"{path}: line {number + 1} is not UTF-8; convert the file, or remove the line"
                ) from error
            yield number, text.replace("\r\n", "\n")
            number += 1


def checked(text: object, key: str, where: str) -> str:
    """A text of a record; RecipeError where it is none that UTF-8 can spell."""
    if not isinstance(text, str):
        raise RecipeError(f"{where}: '{key}' is no string; mend or remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot: "\ud800"
        raise RecipeError(f"{where}: '{key}' holds half a character; mend or remove it") from error
    if size > MAX_LINE_BYTES:
        raise _too_long(where)
    return text


def names(recipe: Recipe, files: Sequence[str] = ()) -> str:
    """Files of a recipe, for a message: a few of them. files: not all, but these."""
    paths = [recipe.folder / name for name in files] or recipe.data_files()
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if paths[3:] else "")


def sum_of_files(recipe: Recipe) -> Any:
    """A digest, to be gone on with, of all files of a recipe."""
    digest = hashlib.sha256()
    for named in (*recipe.data_files(), *recipe.validation_files()):
        for path in shards(named):
            try:
                digest.update(bytes.fromhex(sum_of(path)))
            except FormatError as error:
                raise unreadable(path, error) from error
    return digest


def unreadable(path: Path, error: OSError | FormatError) -> RecipeError:
    """What to tell of a training text that cannot be read, or is no regular file."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ").split(";")[0]
    return RecipeError(
        f"{path}: cannot read the training text ({reason}); check its name in the recipe"
    )


def _too_long(where: str) -> RecipeError:
    return RecipeError(f"{where} has more than {MAX_LINE_BYTES >> 20} MB; make several of it")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open_file(path)[0] as file:
            if path.suffix == ".xz":
                with lzma.open(file) as unpacked:
                    yield unpacked
            else:
                yield file
    except (lzma.LZMAError, EOFError) as error:
        raise RecipeError(f"{path}: is no whole .xz file ({error}); fetch it again") from error
    except (OSError, FormatError) as error:
        raise unreadable(path, error) from error
