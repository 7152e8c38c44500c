"""What comes back: a text as it comes (`Event`), what came of it (`Completion`), or its `Score`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trilobit.text.tools import ToolCall

FinishReason = Literal["stop", "length", "aborted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probability of a token of an output, and of the likeliest ones in its place.

    Of the logits as they come from the model: before bias, penalties and temperature. top: (token
    id, log-probability), the likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request; cached_tokens are those of the prompt that the cache had."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What is new of a request since the event before it; all of them joined are its output.

    finish_reason: in the last event only, as in `Completion`. Token ids may come before their
    text, which waits for whole characters and for what may become a stop string.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason | None
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a prompt.

    token_ids: what was generated, with the token that ended it. prompt_tokens: of which
    cached_tokens were taken from the cache. finish_reason: "stop" (end-of-sequence token, stop
    token or stop string; stop_reason tells which), "length" (max_tokens or the context is full),
    "aborted" (the stream was closed). Rates are those of the steps that this request took part in;
    0 when there was none. drafted_tokens: guesses of what comes next that were tried in those
    steps; accepted_tokens: how many of them are in the output. seed: what gives the same text
    again. logprobs: of each of token_ids, if they were asked for. tool_calls: functions that the
    model calls, in a chat with tools, and reasoning: what it thought before, in a chat where that
    is told apart; text is the rest then.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: FinishReason
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    seed: int
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """Natural log-probabilities of a text: `logprobs[i]` is of `token_ids[first + i]`, float32.

    likeliest: of each of them, whether no other token had a larger one.
    """

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]
    likeliest: NDArray[np.bool_]
    first: int = 1

    @property
    def total(self) -> float:
        """Log-probability of the text from `first` on, given what stands before it."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN for a text of one token."""
        count = len(self.logprobs)
        return float(np.exp(-self.total / count)) if count else float("nan")
