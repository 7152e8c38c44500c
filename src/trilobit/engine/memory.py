"""What a step needs beside weights and cache, and the error of a model that has no room."""

from __future__ import annotations

from trilobit.engine.reading import rows_at_once
from trilobit.errors import RequestError
from trilobit.model.config import ModelConfig

_FLOAT = 4
_STATES = 16  # vectors of a token that a step holds at a time, and copies of it in numpy
_HIDDEN = 4  # of those between the parts of an MLP
_LOGITS = 3  # rows of logits, and what their log-probabilities are made with


class MemoryTooSmall(RequestError):
    """A model that cannot keep to the memory it was given."""


def step_bytes(config: ModelConfig, batch_tokens: int) -> int:
    """Of a step of so many tokens at most, with all their logits; about, and rather too much."""
    token = _STATES * config.hidden_size + _HIDDEN * config.intermediate_size
    rows = min(batch_tokens, rows_at_once(config.vocab_size))
    return _FLOAT * (batch_tokens * token + _LOGITS * rows * config.vocab_size)
