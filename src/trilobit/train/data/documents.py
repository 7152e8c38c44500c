"""Read the documents of a training run: .txt and .jsonl files, plain or .xz.

Everything is a stream: a corpus may be larger than the memory. A line is not: it is one document,
or becomes part of one, so its length is bounded, packed or not.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import open_file
from trilobit.train.recipes import Recipe
from trilobit.train.sums import sum_of

# A plain text has no documents; blocks of about this many characters are what is held out.
BLOCK_CHARACTERS = 4000
# A block ends with a paragraph. One that has none for this long ends with a line.
_LONGEST_BLOCK = 8 * BLOCK_CHARACTERS
# The Bible has 4.4 MB. A tokenizer needs a hundred times as much memory.
MAX_LINE_BYTES = 8 << 20

Message = dict[str, str]  # role, content


class Preference(NamedTuple):
    """Messages, the reply to them that is preferred, and one that is not."""

    messages: list[Message]
    chosen: str
    rejected: str


def documents(path: Path, source: str | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of each document: the line number of a .jsonl, the block of a .txt.

    source: take only lines of a .jsonl whose `source` equals it.
    Raises RecipeError when the file is missing, no regular one, not UTF-8, or not what its name
    says, for a line beyond MAX_LINE_BYTES, and for one without a `source` that is asked for.
    """
    kind = _kind(path)
    if kind not in (".jsonl", ".txt"):
        raise RecipeError(f"{path}: a text file's name ends in .txt or .jsonl (or those .xz)")
    with _opened(path) as file:
        if kind == ".txt":
            yield from _blocks(path, file)
            return
        for number, record in _records(path, file, "text"):
            found = record.get("source")
            text = _checked(record["text"], "'text'", path, number)
            if source is not None and found is None:
                raise RecipeError(
                    f"{path}: line {number + 1} has no 'source', and data.source of the recipe "
                    f"takes only lines whose 'source' is {source!r:.60}; leave data.source out to "
                    "take all"
                )
            if (source is None or found == source) and text.strip():
                yield number, text.strip()


def conversations(path: Path) -> Iterator[tuple[int, list[Message]]]:
    """Line number and messages of each line of a .jsonl: `role` and `content`, in `messages`.

    Raises RecipeError as `documents` does, and for what is no conversation.
    """
    if _kind(path) != ".jsonl":
        raise RecipeError(
            f"{path}: a file of conversations has a name that ends in .jsonl (or .xz)"
        )
    with _opened(path) as file:
        for number, record in _records(path, file, "messages"):
            yield number, _messages(record["messages"], "messages", path, number)


def preferences(path: Path) -> Iterator[tuple[int, Preference]]:
    """Line number and contents of each line of a .jsonl: `chosen` and `rejected`, and `prompt`.

    All three are lists of messages, as trl has them; without `prompt` it is what the two begin
    with in common. Raises RecipeError as `documents` does, and for what has no two replies.
    """
    if _kind(path) != ".jsonl":
        raise RecipeError(f"{path}: a file of preferences has a name that ends in .jsonl (or .xz)")
    with _opened(path) as file:
        for number, record in _records(path, file, "chosen"):
            prompt = _messages(record.get("prompt") or [], "prompt", path, number)
            chosen, rejected = (
                [*prompt, *_messages(record.get(key), key, path, number)]
                for key in ("chosen", "rejected")
            )
            *before, last = chosen or [{}]
            if (
                not before
                or rejected[:-1] != before
                or {last["role"], rejected[-1]["role"]} != {"assistant"}
                or last["content"].strip() == rejected[-1]["content"].strip()
            ):
                raise RecipeError(
                    f"{path}: line {number + 1}: 'chosen' and 'rejected' must be two different "
                    "replies of the assistant to the same messages; mend or remove it"
                )
            yield number, Preference(before, last["content"], rejected[-1]["content"])


def alike(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Line number and two texts of each line of a .jsonl: `anchor` and `positive`, which are alike.

    Raises RecipeError as `documents` does, and for a text that is empty.
    """
    if _kind(path) != ".jsonl":
        raise RecipeError(
            f"{path}: a file of texts that are alike has a name that ends in .jsonl (or .xz)"
        )
    with _opened(path) as file:
        for number, record in _records(path, file, "anchor"):
            anchor, positive = (
                _checked(record.get(key), f"'{key}'", path, number).strip()
                for key in ("anchor", "positive")
            )
            if not anchor or not positive:
                raise RecipeError(
                    f"{path}: line {number + 1}: 'anchor' or 'positive' is empty; mend or remove it"
                )
            yield number, (anchor, positive)


def names(recipe: Recipe) -> str:
    """The files of a recipe, for a message: a few of them."""
    paths = recipe.data_files()
    return ", ".join(map(str, paths[:3])) + (f" and {len(paths) - 3} more" if paths[3:] else "")


def sum_of_files(recipe: Recipe) -> Any:
    """A digest, to be gone on with, of all files of a recipe."""
    digest = hashlib.sha256()
    validation = recipe.validation_file()
    for path in (*recipe.data_files(), *([validation] if validation else ())):
        try:
            digest.update(bytes.fromhex(sum_of(path)))
        except FormatError as error:
            raise unreadable(path, error) from error
    return digest


def unreadable(path: Path, error: OSError | FormatError) -> RecipeError:
    """What to tell of a training text that cannot be read, or is no regular file."""
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ").split(";")[0]
    return RecipeError(
        f"{path}: cannot read the training text ({reason}); name it with data.files or --data"
    )


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".xz" else path).suffix


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


def _records(path: Path, file: IO[bytes], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl, each of which has this key."""
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record[key], record.get(key)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: line {number + 1} is no JSON object with a '{key}'; mend or remove it"
            ) from error
        yield number, record


def _messages(found: object, key: str, path: Path, number: int) -> list[Message]:
    if not isinstance(found, list) or not all(map(_is_message, found)):
        raise RecipeError(
            f"{path}: line {number + 1}: '{key}' is no list of objects with the texts 'role' and "
            "'content'; mend or remove it"
        )
    return [
        {k: _checked(message[k], f"'{k}'", path, number) for k in ("role", "content")}
        for message in found
    ]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(k), str) for k in ("role", "content")
    )


def _checked(text: object, what: str, path: Path, number: int) -> str:
    if not isinstance(text, str):
        raise RecipeError(f"{path}: line {number + 1}: {what} is no string; mend or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell what UTF-8 cannot: "\ud800"
        raise RecipeError(
            f"{path}: line {number + 1}: {what} holds half a character; mend or remove it"
        ) from error
    return text


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
