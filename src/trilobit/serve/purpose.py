"""What a model may be asked for, told by its file, open or not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trilobit.errors import TrilobitError
from trilobit.formats.open import open_source
from trilobit.hub.models import known_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a model was made for.

    chat: to talk. generates: not for vectors only. embeds: it has a tokenizer, which is all that
    vectors need. positions: of its context, at most.
    """

    chat: bool
    generates: bool
    embeds: bool
    positions: int


def purpose_of(model: str) -> Purpose | None:
    """Of a model by any name; None where it is not here, or cannot be read.

    Reads files: of a checkpoint that is not packed, its tokenizer too.
    """
    try:
        path = known_file(model)
        return None if path is None else _read(path, path.stat().st_mtime_ns)
    except (OSError, TrilobitError):  # who asks this model for something is told why
        return None


@lru_cache(maxsize=64)
def _read(path: Path, _changed_ns: int) -> Purpose:
    source = open_source(path)
    text = source.text
    return Purpose(
        chat=text.chat_template is not None and text.pooling is None,
        generates=text.pooling is None,
        embeds=text.tokenizer is not None,
        positions=source.config.max_position_embeddings,
    )
