"""`LLM`: a model to call from Python. Text or token ids in, text, logits or probabilities out.

Safe to use from several threads: whoever waits for text runs the next step for everybody, so
requests from different threads share their batches. Safe to interrupt: Ctrl-C ends the call that
it hits, no other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from functools import cached_property
from pathlib import Path
from typing import Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from trilobit.bundled import DEFAULT
from trilobit.engine.event import Completion, Score, TokenLogprob
from trilobit.engine.options import Options, options_of
from trilobit.engine.reading import Logits, Logprobs, Reading, TopLogprobs
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.errors import RequestError
from trilobit.inputs import Message, Prompt, TokenIds, is_items, is_several
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout
from trilobit.opened import open_model
from trilobit.progress import Watch
from trilobit.sampling import SamplingParams
from trilobit.stream import Stream
from trilobit.text.tokenizer import Tokenizer
from trilobit.text.tools import Toolbox

Params = SamplingParams | Items[SamplingParams] | None


class LLM:
    """A packed model, ready to run.

    model: a packed file, the folder of a checkpoint, or a name: of a bundled model or of one of the
    Hugging Face Hub, such as "bitnet-2b" or "org/name" (docs/models.md). What is not packed yet is
    downloaded and packed first; progress is told how far that is, and None draws it on a terminal.
    options: those of `EngineOptions`.

    `close`, or leaving a `with`, gives its memory back; whatever runs then ends with an error.

    Raises FormatError or UnsupportedModel for a file that cannot be run, DownloadError for a name
    that cannot be fetched, RequestError for an unknown name or an impossible option.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT,
        *,
        progress: Watch | None = None,
        **options: Unpack[Options],
    ) -> None:
        opened = open_model(model, options_of("LLM", options), progress)
        self.path: Path = opened.path
        self.config: ModelConfig = opened.config
        self.layout: Layout = opened.layout
        self.head_is_screened: bool = opened.head_is_screened
        self.threads: int = opened.threads
        self._threads_for, self._activity = opened.threads_for, opened.activity
        self._second_looks = opened.second_looks
        self._fingerprint = opened.fingerprint
        self._prompter, self._worker = opened.prompter, opened.worker

    @property
    def context(self) -> int:
        """Tokens of prompt and output together, at most."""
        return self._prompter.context

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides which tokens come: the weights, this version, the cache's type."""
        return self._fingerprint()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self._prompter.tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was published with a form for conversations."""
        return self._prompter.chat_template is not None

    @property
    def sampling(self) -> SamplingParams:
        """What the model's makers say of how its tokens are chosen; None in it: nothing."""
        return self._prompter.sampling

    def threads_for(self, tokens: int) -> int:
        """Threads that a step of so many tokens takes: 1 where it is too short to be shared."""
        return self._threads_for(tokens)

    def activity(self) -> list[tuple[float, float]]:
        """Of every layer of a relu² model, of all tokens so far: how much of its MLP counted.

        The share of gates that were open, and of the inputs of `down_proj` whose code was not 0.
        Where `hidden_size` is 2,048 or more, only those rows of `up_proj` and columns of
        `down_proj` are read. Empty for other models.
        """
        return self._activity()

    def second_looks(self) -> float:
        """Of all tokens so far that a screened head chose: how much of its fine plane was read.

        The share of its rows that the first look left in doubt; 0 where there are no such tokens.
        """
        return self._second_looks()

    def close(self) -> None:
        """Give the memory of the model back. Requests that run end with an error."""
        self._worker.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._worker.is_closed else ""
        return f"<LLM {self._prompter.name}: context {self.context}, threads {self.threads}{state}>"

    # ---- text ---------------------------------------------------------------------------------

    # A str is also a sequence of str: the first that fits counts, here and in `is_several`.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, params: SamplingParams | None = ...
    ) -> Completion: ...
    @overload
    def generate(self, prompts: Items[Prompt], params: Params = ...) -> list[Completion]: ...

    def generate(
        self, prompts: Prompt | Items[Prompt], params: Params = None
    ) -> Completion | list[Completion]:
        """Continue a prompt (a text, or token ids), or several at once.

        params: for all, or a list of one for each prompt. Raises ContextOverflow when a prompt
        leaves no room, RequestError for one that cannot be encoded; then nothing is generated.
        """
        done = self._complete(self._prompter.several_ids(prompts), params)
        return [one for [one] in done] if is_several(prompts) else done[0][0]

    def choices(
        self, prompt: Prompt, n: int, params: SamplingParams | None = None
    ) -> list[Completion]:
        """Continue a prompt in `n` ways; the prompt is computed once.

        With a seed, each has the next one's: `Completion.seed` tells which.
        """
        return self._complete([self._prompter.ids(prompt)], params, n=n)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continue a prompt, text by text as it comes."""
        return self._streamed(self._prompter.ids(prompt), params)

    @overload
    def chat(
        self,
        messages: Items[Message],
        params: SamplingParams | None = ...,
        *,
        tools: Items[Message] | None = ...,
        tool_choice: str | Message = ...,
        parallel_tool_calls: bool = ...,
        reasoning: bool = ...,
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Items[Items[Message]],
        params: Params = ...,
        *,
        tools: Items[Message] | None = ...,
        tool_choice: str | Message = ...,
        parallel_tool_calls: bool = ...,
        reasoning: bool = ...,
    ) -> list[Completion]: ...

    def chat(
        self,
        messages: Items[Message] | Items[Items[Message]],
        params: Params = None,
        *,
        tools: Items[Message] | None = None,
        tool_choice: str | Message = "auto",
        parallel_tool_calls: bool = True,
        reasoning: bool = False,
    ) -> Completion | list[Completion]:
        """Answer a conversation, or several at once; messages are `{"role": ..., "content": ...}`.

        A content may be None or a list of `{"type": "text", "text": ...}`. Other fields, such as
        `tool_calls` or `name`, go to the chat template; what is None is left out. A model without a
        chat template continues the contents, joined by newlines, as one text.

        tools, tool_choice, parallel_tool_calls: functions that the model may or must call, as in
        OpenAI's API (see `Toolbox`); `Completion.tool_calls` has the calls. reasoning: tell apart
        what a model thinks that was taught to: `Completion.reasoning`.
        """
        toolbox = None if tools is None else Toolbox(tools, tool_choice, parallel_tool_calls)
        ids = self._prompter.several_chats(messages, toolbox)
        several = [
            self._prompter.answering(one, own, toolbox)
            for one, own in zip(ids, self._prompter.params(params, len(ids)), strict=True)
        ]
        done = [
            self._prompter.parted(one, completion, toolbox, reasoning=reasoning)
            for one, [completion] in zip(ids, self._complete(ids, several), strict=True)
        ]
        return done if is_items(messages[0]) else done[0]

    def stream_chat(self, messages: Items[Message], params: SamplingParams | None = None) -> Stream:
        """Answer a conversation, text by text as it comes."""
        return self._streamed(self.chat_ids(messages), params)

    # ---- numbers ------------------------------------------------------------------------------

    def logits(self, token_ids: TokenIds) -> NDArray[np.float32]:
        """Logits after every token, float32 `[T, vocab]`."""
        if isinstance(token_ids, str):
            raise RequestError("logits takes token ids, not a text; give it encode(text)")
        ids = self._prompter.ids(token_ids)
        reading = Logits(len(ids), self.config.vocab_size)
        self._run([self._reading(ids, reading)])
        return reading.values

    @overload
    def score(self, text: Prompt, *, first: int = ...) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, text: Items[Prompt], *, first: int | Items[int] = ...) -> list[Score]: ...

    def score(
        self, text: Prompt | Items[Prompt], *, first: int | Items[int] = 1
    ) -> Score | list[Score]:
        """Log-probability of every token of a text (or of token ids) after those before it.

        first: the number of the first token to score, counted from 0; one for each text, or one for
        all. What stands before it is read only, and taken from the cache where that has it. The
        last token is foretold and never read, so a text may have one more than the context.
        Of several texts, a list. Streams that run meanwhile go on (`step_budget_ms`).
        """
        if is_items(text) and len(text) == 0:
            raise RequestError("there is nothing to score; give at least one token")
        several = self._prompter.several_ids(text, beyond=1)
        firsts = [first] * len(several) if isinstance(first, int) else first
        if not is_items(firsts):
            raise RequestError(f"first is {first!r:.40}; give a number, or one for each text")
        if len(firsts) != len(several):
            raise RequestError(f"first has {len(firsts)} numbers for {len(several)} texts")
        readings = [Logprobs(*pair) for pair in zip(several, firsts, strict=True)]
        read = [ids[:-1] or ids for ids in several]
        self._run([self._reading(*pair) for pair in zip(read, readings, strict=True)])
        scores = [reading.score() for reading in readings]
        return scores if is_several(text) else scores[0]

    def prompt_logprobs(self, prompt: Prompt, top: int = 0) -> list[TokenLogprob]:
        """Of every token of a prompt but the first, after those before it, and the `top` likeliest.

        As `score` has them, with the same bits.
        """
        ids = self._prompter.ids(prompt)
        reading = TopLogprobs(ids, SamplingParams(logprobs=top).logprobs or 0)
        self._run([self._reading(ids, reading)])
        return reading.values

    # ---- ids ----------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the beginning-of-text token where the model wants one.

        It may be longer than the context, up to 16 MB. RequestError for more.
        """
        return self._prompter.encode(text)

    def decode(self, token_ids: TokenIds) -> str:
        """Text of token ids, as completions have it: without special tokens.

        Bytes that are no character become replacement characters.
        """
        return self._prompter.decode(token_ids)

    def chat_ids(self, messages: Items[Message]) -> list[int]:
        """Token ids of a conversation, ready for the reply."""
        return self._prompter.chat_ids(messages)

    # ---- running ------------------------------------------------------------------------------

    def _complete(
        self, prompts: Items[list[int]], params: Params, *, n: int = 1
    ) -> list[list[Completion]]:
        made = self._prompter.sequences(prompts, params, n=n)
        self._run([one for several in made for one in several], queue=[one[0] for one in made])
        return [[one.completion() for one in several] for several in made]

    def _streamed(self, prompt: list[int], params: SamplingParams | None) -> Stream:
        [[sequence]] = self._prompter.sequences([prompt], cast(SamplingParams, params))
        stream = Stream(sequence, self._worker)  # first: it ends the request whatever comes
        self._worker.submit([sequence])
        return stream

    def _run(self, sequences: list[Sequence], *, queue: list[Sequence] | None = None) -> None:
        """Run sequences to their ends; the first error of one is raised."""
        try:
            self._worker.submit(sequences if queue is None else queue)
            self._worker.run(sequences)
        finally:
            self._worker.abandon([sequence for sequence in sequences if not sequence.over])
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error

    def _reading(self, ids: list[int], reading: Reading) -> Sequence:
        return Sequence(
            Request(prompt=ids, params=SamplingParams(), seed=0, limit=len(ids)), reading=reading
        )
