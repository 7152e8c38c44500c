"""Answers that others computed with the real weights, to compare ours with.

They come as one JSON object, so that anyone can keep some for a model of their own; every field but
the ids may be left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError
from trilobit.formats.files import read_json
from trilobit.model.config import ModelConfig

_LARGEST = 1e30  # of logits, tolerances and perplexities
_MOST_NUMBERS = 1 << 14  # as many ids fill the longest window that anyone computes


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -_LARGEST <= value <= _LARGEST  # math.isfinite overflows for a long integer


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Answers of a model, each with how far from it an honest computation can be.

    Raises FormatError for values that are no such answers.
    """

    origin: str = "given"  # who computed them
    ids: tuple[int, ...]
    mean_logits: tuple[float, ...] = ()  # over the vocabulary, after each of `ids`
    mean_tolerance: float = 1e-2  # absolute, and again relative
    first_logits: tuple[float, ...] = ()  # of the first tokens, after the first of `ids`
    first_tolerance: float = 1e-2
    chat: str | None = None  # what a user says; `answer` is greedy, after the chat template
    answer: str | None = None
    perplexity: float | None = None  # of the text that is given, in windows of 512 tokens
    perplexity_tolerance: float = 0.1

    def __post_init__(self) -> None:
        # From JSON: lists, and integers where numbers are meant.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        if max(map(len, (self.ids, self.mean_logits, self.first_logits))) > _MOST_NUMBERS:
            raise FormatError(f"more than {_MOST_NUMBERS} numbers in a list")
        if not self.ids or not all(type(i) is int and 0 <= i < 1 << 31 for i in self.ids):
            raise FormatError("ids are not token ids")
        numbers = (*self.mean_logits, *self.first_logits, self.mean_tolerance)
        numbers = (*numbers, self.first_tolerance, self.perplexity_tolerance)
        if not all(map(_is_number, numbers)):
            raise FormatError("logits and tolerances are not all numbers")
        if self.mean_logits and len(self.mean_logits) != len(self.ids):
            raise FormatError(f"{len(self.mean_logits)} mean_logits for {len(self.ids)} ids")
        if (self.chat is None) != (self.answer is None):
            raise FormatError("chat and answer come together")
        if not all(isinstance(text, str | None) for text in (self.chat, self.answer)):
            raise FormatError("chat and answer are not texts")
        if self.perplexity is not None and not _is_number(self.perplexity):
            raise FormatError("perplexity is not a number")


# Hugging Face's own test of the model (transformers, tests/models/bitnet), and the perplexity of
# WikiText-2's test part that bitnet.cpp publishes. The test wants the first logits to 1e-4, which
# holds where every activation gets the same int8 code; a code that falls to the other side of its
# middle in another order of summation moves logits by some 1e-3.
BITNET_2B_4T = Golden(
    origin="transformers' test of microsoft/bitnet-b1.58-2B-4T",
    ids=(128000, 128000, 1502, 25, 2650, 527, 499, 30, 128009, 72803, 25, 220),
    mean_logits=(
        -1.8665, -1.7681, -1.7043, 3.7446, 2.7730, 4.7133,
        0.9768, -3.5018, -12.2812, -8.1477, -10.2571, -8.7610,
    ),
    first_logits=(
        5.5815, 4.9154, 1.0478, 4.3869, 3.0112, 0.8235, 3.8412, 2.9233, 8.1140, 1.9406,
    ),
    chat="What is your favourite food?",
    answer="As an AI, I don't have personal preferences or the ability to eat food. However, I",
    perplexity=17.1090,
)  # fmt: skip

_SHAPE_2B_4T = {
    "vocab_size": 128256,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 30,
    "num_attention_heads": 20,
    "num_key_value_heads": 5,
    "head_dim": 128,
    "hidden_act": "relu2",
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
}


def known(config: ModelConfig) -> Golden | None:
    """The golden values of a published model, recognised by its shape and its first token."""
    if all(getattr(config, name) == value for name, value in _SHAPE_2B_4T.items()):
        return BITNET_2B_4T
    return None


def read(path: Path) -> Golden:
    """Golden values from a JSON file; FormatError when it holds none."""
    values: dict[str, Any] = read_json(path)
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(Golden)})
    if unknown:
        raise FormatError(f"{path}: unknown field {unknown[0][:80]!r}; see docs/verify.md")
    if not isinstance(values.get("ids"), list):
        raise FormatError(f"{path}: no list of token ids named 'ids'; see docs/verify.md")
    try:
        return Golden(**values)
    except (FormatError, TypeError) as error:
        raise FormatError(f"{path}: {error}; see docs/verify.md") from None


def farthest(found: Sequence[float], wanted: Sequence[float], tolerance: float) -> tuple[int, bool]:
    """Where two rows of numbers differ most, and whether all are within `tolerance`.

    Absolute and relative at once, as torch.testing has it: |a - b| <= tolerance * (1 + |b|).
    """
    apart = [abs(a - b) / (1 + abs(b)) for a, b in zip(found, wanted, strict=True)]
    worst = max(range(len(apart)), key=lambda i: apart[i] if apart[i] == apart[i] else math.inf)
    return worst, all(one <= tolerance for one in apart)
