"""One line of tokens on its way: its place in the cache, its text, how it ends.

It wants its next tokens, or numbers of those that it has (`reading`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from trilobit.engine.blocks import Key, blocks_for, root_of
from trilobit.engine.event import Completion, FinishReason, TokenLogprob
from trilobit.engine.reading import Reading, Wants
from trilobit.engine.request import Request
from trilobit.text.stops import StopStrings
from trilobit.text.tokenizer import Tokenizer


class Sampler(Protocol):
    """Chooses the tokens of one sequence; a backend makes it."""

    def accept(self, id: int, /) -> None:
        """A token of the output that was chosen before."""


class Sequence:
    """State of one request. The scheduler moves it, the engine feeds it, its owner reads it.

    tokens: prompt and output. computed: how many of them have their keys and values in `blocks`.
    text: the output so far. followers: sequences of the same prompt, which are queued when this one
    has put it into the cache. sink: called, on whatever thread runs the engine, when there is
    something new to read; must not block. Everything but the measures follows from `tokens`: see
    `restart`.
    """

    def __init__(
        self,
        request: Request,
        *,
        tokenizer: Tokenizer | None = None,
        reading: Reading | None = None,
        sink: Callable[[Sequence], None] | None = None,
    ) -> None:
        self.request = request
        self.root = root_of(request.salt)
        self.reading = reading
        self.sink = sink
        self.tokens = list(request.prompt)
        self.prompt_tokens = len(self.tokens)
        self.cached_tokens: int | None = None  # unknown before it runs
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self.prefilled = 0  # prompt tokens that were computed
        self.drafted = 0  # guesses that were tried,
        self.accepted = 0  # and those that came true
        self.logprobs: list[TokenLogprob] = []  # of the output, if they are wanted
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.error: BaseException | None = None
        self.abandoned = False  # its owner wants no more
        self.followers: list[Sequence] = []
        self.sampler: Any = None  # the backend's own, made when it is queued
        self._tokenizer = tokenizer
        self._begin()

    def _begin(self) -> None:
        self.blocks: list[int] = []
        self.key: Key = self.root  # of the last full block
        self.computed = 0
        self.text = ""
        self._text = self._tokenizer.stream() if self._tokenizer else None
        self._stops = StopStrings(tuple(self.request.params.stop))
        if self.reading is not None:
            self.reading.begin()

    @property
    def wants(self) -> Wants:
        """What its tokens are computed for."""
        return "tokens" if self.reading is None else self.reading.wants

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def needed_blocks(self) -> int:
        """Blocks that hold all its tokens, and the next one where it wants that."""
        return blocks_for(len(self.tokens) + (self.reading is None))

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.request.limit - len(self.tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether its next step gives the next token of a text that has begun."""
        return self.output_tokens > 0 and self.pending == 1

    @property
    def prompt_tokens_done(self) -> int:
        """Tokens of the prompt that are computed, or were in the cache: progress of the prefill."""
        return (
            min(self.computed, self.prompt_tokens)
            if not self.output_tokens
            else (self.prompt_tokens)
        )

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.abandoned or self.finish_reason is not None or self.error is not None

    def accept(self, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Take a generated token, and end where it ends the output."""
        started = time.perf_counter()
        if logprob is not None:
            del self.logprobs[self.output_tokens :]  # of a step that was cut short
            self.logprobs.append(logprob)
        self.tokens.append(token_id)
        self._read(len(self.tokens))
        self.decode_s += time.perf_counter() - started  # turning tokens into text is work too

    def finish(self) -> None:
        """End a reading, whose rows have all come."""
        self.finish_reason = "stop"

    def abort(self) -> None:
        """End the output here, half characters left out."""
        self.text += self._stops.finish()
        self.finish_reason = "aborted"

    def restart(self) -> None:
        """Begin again from `tokens`, outside the cache: after a step that was cut short."""
        self._begin()
        for count in range(self.prompt_tokens + 1, len(self.tokens) + 1):
            self._read(count)

    def completion(self) -> Completion:
        """What has come so far."""
        tokens = tuple(self.tokens[self.prompt_tokens :])
        decoded = len(tokens) - 1  # the first token comes out of the prefill
        wanted = self.request.params.logprobs is not None
        return Completion(
            text=self.text,
            token_ids=tokens,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens or 0,
            finish_reason=self.finish_reason or "aborted",
            prefill_tokens_per_s=self.prefilled / self.prefill_s if self.prefill_s else 0.0,
            decode_tokens_per_s=decoded / self.decode_s if self.decode_s else 0.0,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            seed=self.request.seed,
            stop_reason=self.stop_reason,
            logprobs=tuple(self.logprobs[: len(tokens)]) if wanted else None,
        )

    def _read(self, count: int) -> None:
        """Turn the last of the first `count` tokens into text."""
        token_id = self.tokens[count - 1]
        ended = token_id in self.request.end_ids
        last = ended or count >= self.request.limit
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
            # Before finish_reason, which tells readers on other threads that all is there.
            self.stop_reason = token_id if ended else self._stops.found
            self.finish_reason = "stop"
        elif last:
            self.finish_reason = "length"
