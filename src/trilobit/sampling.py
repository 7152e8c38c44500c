"""How the next token is chosen: the parameters, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request, applied in the order: bias and penalties, temperature, top-k,
    top-p, min-p.

    temperature: 0 takes the most likely token. top_k: 0 is off. min_p: relative to the most
    likely token. repetition_penalty: over prompt and output; frequency and presence penalties:
    over the output, as in OpenAI's API. seed: None draws a fresh one. stop: texts that end the
    output and are not part of it. Raises RequestError for a value out of range.
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
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        if any(not isinstance(text, str) or not text for text in stop):
            raise RequestError("stop: every stop string must be a non-empty text")
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
        if self.top_p == 0 or self.repetition_penalty == 0:
            raise RequestError("top_p and repetition_penalty must be greater than 0")
        if any(math.isnan(value) for value in self.logit_bias.values()):
            raise RequestError("logit_bias: a bias is not a number")

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value < high:
            raise RequestError(f"{name} is {value!r}; expected an integer of at least {low}")

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name} is {value!r}; expected a number")
        if not low <= value <= high:
            raise RequestError(f"{name} is {value!r}; expected {low} to {high}")
