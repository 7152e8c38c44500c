"""What a model knows about text: its tokenizer, chat template, how tokens and vectors are made."""

from __future__ import annotations

from dataclasses import dataclass

from trilobit.formats.pooling import Pooling
from trilobit.sampling import NOTHING_SAID, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFiles:
    """What a model knows about text: its tokenizer, chat template and how it begins a text."""

    tokenizer: bytes | None = None  # a tokenizer.json; as it was, where there was one
    chat_template: str | None = None
    add_bos: bool = False
    pooling: Pooling | None = None  # of a model for embeddings
    sampling: SamplingParams = NOTHING_SAID  # what is taken where a request says nothing
