"""What the files of a training run hold: documents, conversations, preferences, texts alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trilobit.errors import RecipeError
from trilobit.train.data.records import Record, checked, lines, records, suffix
from trilobit.train.data.tables import is_table

# A plain text has no documents; blocks of about this many characters are what is held out.
BLOCK_CHARACTERS = 4000
# A block ends with a paragraph. One that has none for this long ends with a line.
_LONGEST_BLOCK = 8 * BLOCK_CHARACTERS

Message = dict[str, str]  # role, content
# What chat templates know. Of another role one is silent, and the next makes it the user's.
_ROLES = ("system", "user", "assistant", "tool")


class Preference(NamedTuple):
    """Messages, the reply to them that is preferred, and one that is not."""

    messages: list[Message]
    chosen: str
    rejected: str


def documents(
    path: Path, source: str | None = None, column: str = "text"
) -> Iterator[tuple[int, str]]:
    """Number and text of each document: the number of the line or row, the block of a .txt.

    source: take only records whose `source` equals it. column: the key of the text.
    Raises RecipeError as `records` does, for a text that is none, and for a record without a
    `source` that is asked for.
    """
    if suffix(path) == ".txt":
        yield from _blocks(path)
        return
    if suffix(path) != ".jsonl" and not is_table(path):
        raise RecipeError(
            f"{path}: a text file's name ends in .txt or .jsonl (or those .xz) or .parquet"
        )
    for record in records(path, "texts", column, ("source",)):
        found = record.values.get("source")
        text = record.text(column).strip()
        if source is not None and found is None:
            raise RecipeError(
                f"{record.where} has no 'source', and data.source of the recipe takes only lines "
                f"whose 'source' is {source!r:.60}; leave data.source out to take all"
            )
        if (source is None or found == source) and text:
            yield record.number, text


def conversations(path: Path) -> Iterator[tuple[int, list[Message]]]:
    """Number and messages of each record: `role` and `content`, in `messages`.

    Raises RecipeError as `records` does, and for what is no conversation, or has nothing in it.
    """
    for record in records(path, "conversations", "messages"):
        yield record.number, _messages(record, "messages")


def preferences(path: Path) -> Iterator[tuple[int, Preference]]:
    """Number and contents of each record: `chosen` and `rejected`, and `prompt`.

    All three are lists of messages, as trl has them; without `prompt` it is what the two begin
    with in common. Raises RecipeError as `records` does, and for what has no two replies.
    """
    for record in records(path, "preferences", "chosen", ("rejected", "prompt")):
        prompt = _messages(record, "prompt") if record.values.get("prompt") else []
        chosen, rejected = ([*prompt, *_messages(record, key)] for key in ("chosen", "rejected"))
        *before, last = chosen or [{}]
        if (
            not before
            or rejected[:-1] != before
            or {last["role"], rejected[-1]["role"]} != {"assistant"}
            or last["content"].strip() == rejected[-1]["content"].strip()
        ):
            raise RecipeError(
                f"{record.where}: 'chosen' and 'rejected' must be two different "
                "replies of the assistant to the same messages; mend or remove it"
            )
        yield record.number, Preference(before, last["content"], rejected[-1]["content"])


def alike(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Number and two texts of each record: `anchor` and `positive`, which are alike.

    Raises RecipeError as `records` does, and for a text that is empty.
    """
    for record in records(path, "texts that are alike", "anchor", ("positive",)):
        anchor, positive = (record.text(key).strip() for key in ("anchor", "positive"))
        if not anchor or not positive:
            raise RecipeError(f"{record.where}: 'anchor' or 'positive' is empty; mend or remove it")
        yield record.number, (anchor, positive)


def _messages(record: Record, key: str) -> list[Message]:
    found = record.values.get(key)
    if not isinstance(found, list) or not all(map(_is_message, found)):
        raise RecipeError(
            f"{record.where}: '{key}' is no list of objects with the texts 'role' and "
            "'content'; mend or remove it"
        )
    if not found:
        raise RecipeError(f"{record.where}: '{key}' is empty; mend or remove it")
    for message in found:
        if message["role"] not in _ROLES:
            raise RecipeError(
                f"{record.where}: the role {message['role']!r:.40} is none of {', '.join(_ROLES)}; "
                "mend or remove it"
            )
        if message.get("tool_calls"):
            raise RecipeError(
                f"{record.where}: 'tool_calls' are not learned; write them into 'content', as the "
                "model is to spell them, or remove it"
            )
    return [
        {k: checked(message[k], k, record.where) for k in ("role", "content")} for message in found
    ]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(k), str) for k in ("role", "content")
    )


def _blocks(path: Path) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    size = number = 0
    for _, line in lines(path):
        block.append(line)
        size += len(line)
        if (size >= BLOCK_CHARACTERS and not line.strip()) or size >= _LONGEST_BLOCK:
            yield number, "".join(block).strip()
            block, size, number = [], 0, number + 1
    if text := "".join(block).strip():
        yield number, text
