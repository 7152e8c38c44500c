"""One request on its way: its tokens, its place in the cache, its text, how it ends."""

from __future__ import annotations

import time
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .. import _native
from ..errors import FormatError, RequestError, TrilobitError
from ..sampling import SamplingParams
from ..tokenizer import Tokenizer
from .blocks import ROOT, Key

# Below this float32 cannot hold logit / temperature beside its noise, and the likeliest token
# wins anyway.
_LEAST_TEMPERATURE = 1e-5

FinishReason = Literal["stop", "length", "aborted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a prompt.

    token_ids: what was generated, with the token that ended it. prompt_tokens: of which
    cached_tokens were taken from the cache. finish_reason: "stop" (end-of-sequence token, stop
    token or stop string), "length" (max_tokens or the context is full), "aborted" (the stream was
    closed). Rates are those of the steps that this request took part in; 0 when there was none.
    drafted_tokens: guesses of what comes next that were tried in those steps; accepted_tokens: how
    many of them are in the output.
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


class StopStrings:
    """Passes text on and ends it before the stop string that is complete first.

    Shows no part of a stop string, and gives the same whatever pieces the text comes in.
    """

    def __init__(self, stops: Items[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The part of the text so far that is certain to be output, and was not given before."""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)[1]], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back in vain."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Sequence:
    """State of one request. The scheduler moves it, the runner feeds it, its owner reads it.

    tokens: prompt and output. computed: how many of them have their keys and values in `blocks`.
    text: the output so far. Everything but the measures follows from `tokens`: see `restart`.
    """

    def __init__(
        self,
        prompt: Items[int],
        params: SamplingParams,
        *,
        seed: int,
        end_ids: frozenset[int],
        limit: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.tokens = list(prompt)
        self.prompt_tokens = len(self.tokens)
        self.cached_tokens: int | None = None  # unknown before it runs
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.prefilled = 0  # prompt tokens that were computed
        self.drafted = 0  # guesses that were tried,
        self.accepted = 0  # and those that came true
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.abandoned = False  # its owner wants no more
        self._params = params
        self._seed = seed
        self._end_ids = end_ids
        self._limit = limit  # of tokens, prompt and output
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self.blocks: list[int] = []
        self.key: Key = ROOT  # of the last full block
        self.computed = 0
        self.sampler = _sampler(self._params, self._seed)
        self.sampler.observe(np.array(self.tokens[: self.prompt_tokens], dtype=np.int32))
        self.text = ""
        self._text = self._tokenizer.stream() if self._tokenizer else None
        self._stops = StopStrings(tuple(self._params.stop))

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._limit - len(self.tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.abandoned or self.finish_reason is not None or self.error is not None

    def accept(self, token_id: int) -> None:
        """Take a generated token, and end where it ends the output, or where there is none."""
        if token_id < 0:
            self.error = _no_token(token_id)
            return
        started = time.perf_counter()
        self.tokens.append(token_id)
        self._read(len(self.tokens))
        self.decode_s += time.perf_counter() - started  # turning tokens into text is work too

    def abort(self) -> None:
        """End the output here, half characters left out."""
        self.text += self._stops.finish()
        self.finish_reason = "aborted"

    def restart(self) -> None:
        """Begin again from `tokens`, outside the cache: after a step that was cut short."""
        self._begin()
        for count in range(self.prompt_tokens + 1, len(self.tokens) + 1):
            self.sampler.accept(self.tokens[count - 1])
            self._read(count)

    def completion(self) -> Completion:
        """What has come so far."""
        decoded = self.output_tokens - 1  # the first token comes out of the prefill
        return Completion(
            text=self.text,
            token_ids=tuple(self.tokens[self.prompt_tokens :]),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens or 0,
            finish_reason=self.finish_reason or "aborted",
            prefill_tokens_per_s=self.prefilled / self.prefill_s if self.prefill_s else 0.0,
            decode_tokens_per_s=decoded / self.decode_s if self.decode_s else 0.0,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    def _read(self, count: int) -> None:
        """Turn the last of the first `count` tokens into text."""
        token_id = self.tokens[count - 1]
        ended = token_id in self._end_ids
        last = ended or count >= self._limit
        try:
            if self._text is not None:
                self.text += self._stops.add("" if ended else self._text.add(token_id))
                if last and not self._stops.stopped:
                    self.text += self._stops.add(self._text.finish())
                    self.text += self._stops.finish()
        except Exception as error:  # a tokenizer that fails on an output fails only that one
            self.error = error
            return
        if ended or self._stops.stopped:
            self.finish_reason = "stop"
        elif last:
            self.finish_reason = "length"


def _sampler(params: SamplingParams, seed: int) -> _native.Sampler:
    return _native.Sampler(
        temperature=params.temperature if params.temperature >= _LEAST_TEMPERATURE else 0.0,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        seed=seed,
        logit_bias=dict(params.logit_bias),
    )


def _no_token(code: int) -> TrilobitError:
    """Why the sampler could choose none."""
    if code == _native.Sampler.ALL_FORBIDDEN:
        return RequestError("logit_bias forbids every token; leave one that may be chosen")
    return FormatError(
        "the model's logits are infinite or no numbers, so no token can be chosen; a scale or "
        "weight of the file is wrong: download or convert it again"
    )
