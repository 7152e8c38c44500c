"""What a caller may give to be continued: texts, token ids, conversations; one or several."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError

TokenIds = Items[int] | NDArray[np.integer[Any]]
Prompt = str | TokenIds
Message = Mapping[str, str]


def check_messages(messages: Items[Message]) -> None:
    """RequestError when a conversation is not a list of texts with their roles."""
    if isinstance(messages, str) or not messages:
        raise RequestError("messages: expected a list of {'role': ..., 'content': ...}")
    for message in messages:
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise RequestError(f"messages: a message has no text '{key}': {message!r:.80}")


def checked_ids(ids: TokenIds, vocab_size: int) -> list[int]:
    """Token ids as a list; RequestError when they are none, or not of the vocabulary."""
    if not is_items(ids):
        raise RequestError(f"expected a list of token ids, not {type(ids).__name__}")
    for i in ids:
        if not _is_id(i) or not 0 <= i < vocab_size:
            raise RequestError(not_in_vocabulary(i, vocab_size))
    return [int(i) for i in ids]


def not_in_vocabulary(token_id: object, vocab_size: int) -> str:
    """What to tell of an id that no token has."""
    return f"token id {token_id!r} is not in the vocabulary, 0 to {vocab_size - 1}"


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
