"""Read the documents of a training run: .txt and .jsonl files, plain or .xz."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from trilobit.errors import RecipeError

# A plain text has no documents; blocks of about this many characters are what is held out.
BLOCK_CHARACTERS = 4000


def documents(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each document: the line number of a .jsonl, the block of a .txt.

    source: take only lines of a .jsonl whose `source` equals it.
    Raises RecipeError when the file is missing, not UTF-8, not what its name says, or empty.
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
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 at byte {error.start}; convert it") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error


def split_held_out(
    paths: list[Path], *, source: str | None, held_out_every: int
) -> tuple[list[str], list[str]]:
    """All documents as (to train on, held out): number n is held out where n % every == 0.

    Raises RecipeError when either part is empty.
    """
    train: list[str] = []
    held_out: list[str] = []
    for path in paths:
        for number, text in documents(path, source):
            (train if number % held_out_every else held_out).append(text)
    names = ", ".join(str(path) for path in paths)
    if not train:
        chosen = f" with source '{source}'" if source else ""
        raise RecipeError(f"{names}: no text{chosen} to train on; the files are empty")
    if not held_out:
        raise RecipeError(
            f"{names}: no document falls on held_out_every = {held_out_every}; lower it"
        )
    return train, held_out


def _open(path: Path) -> Iterator[str]:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from lines


def _jsonl(path: Path, source: str | None) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_open(path)):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text = record["text"]
            matches = source is None or record.get("source") == source
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"{path}: line {number + 1} is no JSON object with a 'text'; mend or remove it"
            ) from error
        if not isinstance(text, str):
            raise RecipeError(f"{path}: line {number + 1}: 'text' is no string; mend or remove it")
        if matches and text.strip():
            yield number, text.strip()


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    size = number = 0
    for line in _open(path):
        block.append(line)
        size += len(line)
        if size >= BLOCK_CHARACTERS and not line.strip():
            yield number, "".join(block).strip()
            block, size, number = [], 0, number + 1
    if text := "".join(block).strip():
        yield number, text
