"""How the next token is chosen: the parameters, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .errors import RequestError

# Far above any logit, far below what float32 cannot hold.
_MOST_BIAS = 1e30
# Every stop string is looked for after every token.
_MOST_STOPS = 256
_STOP_CHARACTERS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request, applied in the order: bias and penalties, temperature, top-k,
    top-p, min-p.

    temperature: 0 takes the most likely token. top_k: 0 is off. min_p: relative to the most
    likely token. repetition_penalty: over prompt and output; frequency and presence penalties:
    over the output, as in OpenAI's API. seed: None draws a fresh one. stop: one text or several
    that end the output and are not part of it, 256 at most. ignore_eos: go on after an
    end-of-sequence token. Raises RequestError for a value out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        if any(not isinstance(text, str) or not text for text in stop):
            raise RequestError("stop: every stop string must be a non-empty text")
        if len(stop) > _MOST_STOPS or sum(map(len, stop)) > _STOP_CHARACTERS:
            raise RequestError(
                f"stop: {len(stop):,} stop strings of {sum(map(len, stop)):,} characters; at most "
                f"{_MOST_STOPS} of {_STOP_CHARACTERS:,} together are looked for"
            )
        self._set("stop", stop)
        ids = _items("stop_token_ids", self.stop_token_ids)
        if not all(_is_integer(i) for i in ids):
            raise RequestError(f"stop_token_ids is {ids!r}; expected token ids")
        self._set("stop_token_ids", tuple(map(int, ids)))
        self._integer("max_tokens", 1, 1 << 31)
        self._integer("top_k", 0, 1 << 31)
        if self.seed is not None:
            self._integer("seed", 0, 1 << 64)
        self._number("temperature", 0, 100)
        self._number("top_p", 0, 1)
        self._number("min_p", 0, 1)
        self._number("repetition_penalty", 0, 100)
        self._number("frequency_penalty", -100, 100)
        self._number("presence_penalty", -100, 100)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise RequestError(f"{name} is 0; expected a number greater than 0")
        self._logit_bias()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _logit_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias is {self.logit_bias!r}; expected token id -> bias")
        for token_id, bias in self.logit_bias.items():
            if not _is_integer(token_id):
                raise RequestError(f"logit_bias: {token_id!r} is not a token id")
            if not _is_number(bias) or not (bias == -math.inf or abs(bias) <= _MOST_BIAS):
                raise RequestError(
                    f"logit_bias: the bias of {token_id} is {bias!r}; expected a number from "
                    f"{-_MOST_BIAS:.0e} to {_MOST_BIAS:.0e}, or -inf to forbid the token"
                )
        # A copy: what the caller does to a mapping of his own later does not reach in here.
        self._set("logit_bias", {int(i): float(bias) for i, bias in self.logit_bias.items()})

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not _is_integer(value) or not low <= value < high:
            raise RequestError(f"{name} is {value!r}; expected an integer from {low} to {high - 1}")
        self._set(name, int(value))

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not low <= value <= high:
            raise RequestError(f"{name} is {value!r}; expected a number from {low} to {high}")
        self._set(name, float(value))


def _items(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise RequestError(f"{name} is {value!r}; expected a list")
    return tuple(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's are Integral too


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
