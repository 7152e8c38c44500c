"""Read the documents of a training run: .txt and .jsonl files, plain or .xz.

Everything is a stream: a corpus may be larger than the memory. A line is not: it is one document,
or becomes part of one, so its length is bounded, packed or not.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import open_file

# A plain text has no documents; blocks of about this many characters are what is held out.
BLOCK_CHARACTERS = 4000
# A block ends with a paragraph. One that has none for this long ends with a line.
_LONGEST_BLOCK = 8 * BLOCK_CHARACTERS
# The Bible has 4.4 MB. A tokenizer needs a hundred times as much memory.
MAX_LINE_BYTES = 8 << 20


def documents(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each document: the line number of a .jsonl, the block of a .txt.

    source: take only lines of a .jsonl whose `source` equals it.
    Raises RecipeError when the file is missing, no regular one, not UTF-8, or not what its name
    says, for a line beyond MAX_LINE_BYTES, and for one without a `source` that is asked for.
    """
    inner = path.with_suffix("") if path.suffix == ".xz" else path
    if inner.suffix not in (".jsonl", ".txt"):
        raise RecipeError(f"{path}: a text file's name ends in .txt or .jsonl (or those .xz)")
    try:
        with open_file(path)[0] as file:
            if path.suffix == ".xz":
                with lzma.open(file) as unpacked:
                    yield from _documents(path, inner.suffix, unpacked, source)
            else:
                yield from _documents(path, inner.suffix, file, source)
    except (lzma.LZMAError, EOFError) as error:
        raise RecipeError(f"{path}: is no whole .xz file ({error}); fetch it again") from error
    except (OSError, FormatError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError | FormatError) -> RecipeError:
    """What to tell of a training text that cannot be read, or is no regular file."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ").split(";")[0]
    return RecipeError(
        f"{path}: cannot read the training text ({reason}); name it with data.files or --data"
    )


def _documents(
    path: Path, kind: str, file: IO[bytes], source: str | None
) -> Iterator[tuple[int, str]]:
    return _jsonl(path, file, source) if kind == ".jsonl" else _blocks(path, file)


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 0; a byte order mark and carriage returns dropped."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise RecipeError(
                f"{path}: line {number + 1} has more than {MAX_LINE_BYTES >> 20} MB; make several "
                "of it"
            )
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{path}: line {number + 1} is not UTF-8; convert the file, or remove the line"
            ) from error
        yield number, text.replace("\r\n", "\n")
        number += 1


def _jsonl(path: Path, file: IO[bytes], source: str | None) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = record["text"]
            found = record.get("source")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: line {number + 1} is no JSON object with a 'text'; mend or remove it"
            ) from error
        if not isinstance(text, str):
            raise RecipeError(f"{path}: line {number + 1}: 'text' is no string; mend or remove it")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot: "\ud800"
            raise RecipeError(
                f"{path}: line {number + 1}: 'text' holds half a character; mend or remove it"
            ) from error
        if source is not None and found is None:
            raise RecipeError(
                f"{path}: line {number + 1} has no 'source', and data.source of the recipe takes "
                f"only lines whose 'source' is {source!r:.60}; leave data.source out to take all"
            )
        if (source is None or found == source) and text.strip():
            yield number, text.strip()


def _blocks(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    size = number = 0
    for _, line in _lines(path, file):
        block.append(line)
        size += len(line)
        if (size >= BLOCK_CHARACTERS and not line.strip()) or size >= _LONGEST_BLOCK:
            yield number, "".join(block).strip()
            block, size, number = [], 0, number + 1
    if text := "".join(block).strip():
        yield number, text
