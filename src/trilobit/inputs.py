"""What a caller may give to be continued: texts, token ids, conversations; one or several."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError

TokenIds = Items[int] | NDArray[np.integer[Any]]
Prompt = str | TokenIds
Message = Mapping[str, Any]

_DEEPEST = 32  # lists and objects inside each other, in a field of a message
_MOST_VALUES = 100_000  # of one conversation


def checked_messages(messages: Items[Message]) -> list[dict[str, Any]]:
    """A conversation as a template gets it: contents as texts, fields of None left out.

    `content` is a text, None, or a list of parts `{"type": "text", "text": ...}`, which are joined.
    Other fields (`tool_calls`, `name` ...) are the template's business: they may hold what JSON
    holds. RequestError for anything else.
    """
    if not is_items(messages) or len(messages) == 0:
        raise RequestError("messages: expected a list of {'role': ..., 'content': ...}")
    left = iter(range(_MOST_VALUES))
    return [_checked_message(message, left) for message in messages]


def _checked_message(message: Message, left: Iterator[int]) -> dict[str, Any]:
    if is_items(message):
        raise RequestError(
            "messages: expected one conversation, a list of {'role': ..., 'content': ...}; found a "
            "list inside it: call this for each conversation"
        )
    if not isinstance(message, Mapping):
        raise RequestError(
            f"messages: a message is no {{'role': ..., 'content': ...}}: {_shown(message)}"
        )
    if not isinstance(message.get("role"), str):
        raise RequestError(f"messages: a message has no text 'role': {_shown(message)}")
    if "content" not in message and message.get("tool_calls") is None:
        raise RequestError(f"messages: a message has no 'content': {_shown(message)}")
    checked = {}
    for key, value in message.items():
        if not isinstance(key, str):
            raise RequestError(f"messages: a field is named {_shown(key)}; expected a text")
        # None is a field left out, as to transformers: templates ask whether a field is there.
        if value is not None:
            checked[key] = _content(value) if key == "content" else _plain(value, key, left)
    return checked


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if not is_items(content):
        raise RequestError(
            f"messages: a content is {_shown(content)}; expected a text or a list of text parts"
        )
    texts: list[str] = []
    for part in cast(Items[object], content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise RequestError(
                f"messages: a part of a content is {_shown(part)}; this model takes only "
                "{'type': 'text', 'text': ...}"
            )
        texts.append(text)
    return "".join(texts)


def _plain(value: object, field: str, left: Iterator[int], depth: int = 0) -> Any:
    """A copy of a value that JSON can hold, in bounded time: a list may hold itself."""
    if next(left, None) is None or depth > _DEEPEST:
        raise RequestError(
            f"messages: {field[:60]!r} holds too much: at most {_MOST_VALUES:,} values, "
            f"{_DEEPEST} inside each other"
        )
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(inner, field, left, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, field, left, depth + 1) for inner in value]
    raise RequestError(
        f"messages: {field[:60]!r} holds {type(value).__name__}; expected texts, numbers, lists "
        "and objects with named fields"
    )


def checked_ids(ids: TokenIds, vocab_size: int) -> list[int]:
    """Token ids as a list; RequestError when they are none, or not of the vocabulary."""
    if not is_items(ids):
        raise RequestError(f"expected a list of token ids, not {type(ids).__name__}")
    if len(ids) > 0 and is_several(ids):
        raise RequestError(
            "expected one text or one list of token ids; found several in a list: call this for "
            "each, or give the list to generate"
        )
    for i in ids:
        if isinstance(i, str):
            raise RequestError(f"token id {_shown(i)} is a text; encode it first")
        if not _is_id(i) or not 0 <= i < vocab_size:
            raise RequestError(not_in_vocabulary(i, vocab_size))
    return [int(i) for i in ids]


def not_in_vocabulary(token_id: object, vocab_size: int) -> str:
    """What to tell of an id that no token has."""
    return f"token id {_shown(token_id)} is not in the vocabulary, 0 to {vocab_size - 1}"


def is_several(prompts: object) -> bool:
    """Whether these are prompts, not one prompt; an empty list is no prompts."""
    if not is_items(prompts):
        return False
    items = cast(Items[object], prompts)
    return len(items) == 0 or isinstance(items[0], str) or is_items(items[0])


def is_items(value: object) -> bool:
    """A sequence as Python's lists are: neither text nor bytes."""
    return isinstance(value, (Items, np.ndarray)) and not isinstance(value, (str, bytes, bytearray))


def _is_id(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A value of a caller as it may stand in a message: short, one line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer of more digits than Python shows
        return f"an {type(value).__name__} too long to show"
