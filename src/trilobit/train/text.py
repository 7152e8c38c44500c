"""Read the documents of a training run: .txt and .jsonl files, plain or .xz.

Everything is a stream: a corpus may be larger than the memory.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from trilobit.errors import RecipeError

# A plain text has no documents; blocks of about this many characters are what is held out.
BLOCK_CHARACTERS = 4000
# A block ends with a paragraph. One that has none for this long ends with a line.
_LONGEST_BLOCK = 8 * BLOCK_CHARACTERS


def documents(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each document: the line number of a .jsonl, the block of a .txt.

    source: take only lines of a .jsonl whose `source` equals it.
    Raises RecipeError when the file is missing, not UTF-8, or not what its name says.
    """
    inner = path.with_suffix("") if path.suffix == ".xz" else path
    try:
        if inner.suffix == ".jsonl":
            yield from _jsonl(path, source)
        elif inner.suffix == ".txt":
            yield from _blocks(path)
        else:
            raise RecipeError(f"{path}: a text file's name ends in .txt or .jsonl (or those .xz)")
    except (lzma.LZMAError, EOFError) as error:
        raise RecipeError(f"{path}: is no whole .xz file ({error}); fetch it again") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> RecipeError:
    """What to tell of a text file that the system will not give us."""
    return RecipeError(
        f"{path}: cannot read the training text ({error.strerror or error}); "
        "name it with data.files or --data"
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 0; a byte order mark and carriage returns dropped."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise RecipeError(
                    f"{path}: line {number + 1} is not UTF-8; convert the file, or remove the line"
                ) from error
            yield number, text.replace("\r\n", "\n")


def _jsonl(path: Path, source: str | None) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = record["text"]
            matches = source is None or record.get("source") == source
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
        if matches and text.strip():
            yield number, text.strip()


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    size = number = 0
    for _, line in _lines(path):
        block.append(line)
        size += len(line)
        if (size >= BLOCK_CHARACTERS and not line.strip()) or size >= _LONGEST_BLOCK:
            yield number, "".join(block).strip()
            block, size, number = [], 0, number + 1
    if text := "".join(block).strip():
        yield number, text
