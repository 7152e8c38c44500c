"""`AsyncLLM`: a model for programs of many tasks. `LLM`'s engine, without a thread a request.

One thread runs the engine while there are requests; what it makes wakes the tasks that wait for it,
all of a step with one call into the event loop. A reader that is slow gets more at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Unpack
from weakref import WeakKeyDictionary, ref

from trilobit.bundled import DEFAULT
from trilobit.engine.blocks import KvDtype
from trilobit.engine.engine import Engine
from trilobit.engine.event import Completion, Event, Score, TokenLogprob
from trilobit.engine.options import Options, options_of
from trilobit.engine.reading import Logprobs, TopLogprobs
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.engine.worker import Worker
from trilobit.inputs import Message, Prompt, TokenIds
from trilobit.model.config import ModelConfig
from trilobit.opened import open_model
from trilobit.progress import Watch
from trilobit.sampling import SamplingParams
from trilobit.stream import EventReader
from trilobit.text.reply import Reply
from trilobit.text.tokenizer import Tokenizer
from trilobit.text.tools import Toolbox

_COMPILERS = 2  # grammars compiled at once


class AsyncLLM:
    """A packed model for `async` code; model and options as for `LLM`.

    A request ends when its task is cancelled or its iterator is closed or dropped, within a step;
    nobody else notices. Opening a model takes a while: in a running loop, do it in a thread
    (`await asyncio.to_thread(AsyncLLM, "bitnet-2b")`).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT,
        *,
        progress: Watch | None = None,
        **options: Unpack[Options],
    ) -> None:
        opened = open_model(model, options_of("AsyncLLM", options), progress)
        self.path: Path = opened.path
        self.config: ModelConfig = opened.config
        self.threads: int = opened.threads
        self.kv_dtype: KvDtype = opened.options.kv_dtype
        self.memory_bytes: int = opened.memory_bytes
        self._fingerprint = opened.fingerprint
        self._prompter, self._worker = opened.prompter, opened.worker
        # Threads of their own: grammars that take long are not in the way of anything else.
        self._compilers = ThreadPoolExecutor(_COMPILERS, "trilobit-grammar")
        self._mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = (
            WeakKeyDictionary()
        )

    @property
    def context(self) -> int:
        """Tokens of prompt and output together, at most."""
        return self._prompter.context

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self._prompter.tokenizer

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was published with a form for conversations."""
        return self._prompter.chat_template is not None

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides which tokens come: the weights, this version, the cache's type."""
        return self._fingerprint()

    @property
    def engine(self) -> Engine:
        """What runs it, for counts and measures; RequestError after `close`."""
        return self._worker.engine

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, as `LLM.encode`."""
        return self._prompter.encode(text)

    def decode(self, token_ids: TokenIds) -> str:
        """Text of token ids, as `LLM.decode`."""
        return self._prompter.decode(token_ids)

    def ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt of any form, which fit the context."""
        return self._prompter.ids(prompt)

    def chat_ids(
        self,
        messages: Items[Message],
        toolbox: Toolbox | None = None,
        *,
        thinking: bool | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the reply; toolbox: what may be called in it.

        thinking: whether to think first, where the model's template knows that.
        """
        return self._prompter.chat_ids(messages, toolbox, thinking=thinking)

    def chat_text(self, messages: Items[Message], toolbox: Toolbox | None = None) -> str:
        """A conversation as the model's template writes it, ready for the reply."""
        return self._prompter.chat_text(messages, toolbox)

    def answering(
        self, ids: list[int], params: SamplingParams, toolbox: Toolbox | None
    ) -> SamplingParams:
        """Parameters of the answer to a conversation: where something must be called, it is."""
        return self._prompter.answering(ids, params, toolbox)

    def reply(
        self,
        ids: list[int],
        toolbox: Toolbox | None = None,
        *,
        reasoning: bool = False,
        salt: str = "",
    ) -> Reply:
        """What parts the answer to a conversation as it comes: thoughts, text, calls.

        reasoning: tell thoughts apart. salt: makes the ids of calls those of this answer.
        """
        return self._prompter.reply(ids, toolbox, reasoning=reasoning, salt=salt)

    async def prepare(self, params: SamplingParams) -> None:
        """Compile what the output must be, in another thread; RequestError if that cannot be.

        Calls that are awaited do so themselves. `stream` and its kin cannot: where nothing was
        prepared or asked before, they compile at once, which may keep the event loop for a while.
        """
        if params.constraint is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._compilers, self._prompter.grammar, params)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> EventStream:
        """Continue a prompt: `async for event in llm.stream(...)`. It is queued at once."""
        [stream] = self._streamed(self._prompter.ids(prompt), params)
        return stream

    def stream_choices(
        self,
        prompt: Prompt,
        n: int,
        params: SamplingParams | None = None,
        *,
        cache_salt: str | None = None,
    ) -> list[EventStream]:
        """Continue a prompt in `n` ways, each event by event; the prompt is computed once.

        cache_salt: of what others asked, only that with the same one serves this prompt's cache.
        """
        return self._streamed(self._prompter.ids(prompt), params, n=n, salt=_salt(cache_salt))

    def stream_chat(
        self, messages: Items[Message], params: SamplingParams | None = None
    ) -> EventStream:
        """Answer a conversation, event by event."""
        [stream] = self._streamed(self._prompter.chat_ids(messages), params)
        return stream

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> Completion:
        """Continue a prompt."""
        [done] = await self._complete(self._prompter.ids(prompt), params, n=1)
        return done

    async def choices(
        self, prompt: Prompt, n: int, params: SamplingParams | None = None
    ) -> list[Completion]:
        """Continue a prompt in `n` ways; the prompt is computed once."""
        return await self._complete(self._prompter.ids(prompt), params, n=n)

    async def chat(
        self,
        messages: Items[Message],
        params: SamplingParams | None = None,
        *,
        tools: Items[Message] | None = None,
        tool_choice: str | Message = "auto",
        parallel_tool_calls: bool = True,
        reasoning: bool = False,
    ) -> Completion:
        """Answer a conversation; tools and thoughts as with `LLM.chat`."""
        toolbox = None if tools is None else Toolbox(tools, tool_choice, parallel_tool_calls)
        ids = self._prompter.chat_ids(messages, toolbox)
        params = self.answering(ids, params or SamplingParams(), toolbox)
        [done] = await self._complete(ids, params, n=1)
        return self._prompter.parted(ids, done, toolbox, reasoning=reasoning)

    async def score(self, text: Prompt, *, first: int = 1) -> Score:
        """Log-probability of every token of a text from `first` on, after those before it."""
        ids = self._prompter.ids(text)
        reading = Logprobs(ids, first)
        request = Request(prompt=ids, params=SamplingParams(), seed=0, limit=len(ids))
        await self._run([Sequence(request, reading=reading)])
        return reading.score()

    async def prompt_logprobs(
        self, prompt: Prompt, top: int, *, cache_salt: str | None = None
    ) -> list[TokenLogprob]:
        """Of every token of a prompt but the first, after those before it, and the `top` likeliest.

        As `score` has them, with the same bits.
        """
        ids = self._prompter.ids(prompt)
        reading = TopLogprobs(ids, SamplingParams(logprobs=top).logprobs or 0)
        request = Request(
            prompt=ids, params=SamplingParams(), seed=0, limit=len(ids), salt=_salt(cache_salt)
        )
        await self._run([Sequence(request, reading=reading)])
        return reading.values

    async def close(self) -> None:
        """Give the memory of the model back. Requests that run end with an error."""
        self._compilers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._worker.close)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._worker.is_closed else ""
        name = self._prompter.name
        return f"<AsyncLLM {name}: context {self.context}, threads {self.threads}{state}>"

    # ---- running ------------------------------------------------------------------------------

    def _streamed(
        self, ids: list[int], params: SamplingParams | None, *, n: int = 1, salt: bytes = b""
    ) -> list[EventStream]:
        [sequences] = self._prompter.sequences([ids], params, n=n, salt=salt)
        mailbox = self._mailbox()
        streams = [EventStream(sequence, self._worker, mailbox) for sequence in sequences]
        self._worker.submit(sequences[:1])
        return streams

    async def _complete(
        self, ids: list[int], params: SamplingParams | None, *, n: int
    ) -> list[Completion]:
        if params is not None:
            await self.prepare(params)
        [sequences] = self._prompter.sequences([ids], params, n=n)
        await self._run(sequences)
        return [one.completion() for one in sequences]

    async def _run(self, sequences: list[Sequence]) -> None:
        """Run the first of some sequences, with the others as its followers, and wait for all."""
        mailbox = self._mailbox()
        for sequence in sequences:
            mailbox.open(sequence)
        try:
            self._worker.submit(sequences[:1])
            for sequence in sequences:
                while not sequence.over:
                    await mailbox.news_of(sequence)
        finally:
            for sequence in sequences:
                mailbox.close(sequence)
            self._worker.abandon([one for one in sequences if not one.over])
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error

    def _mailbox(self) -> _Mailbox:
        loop = asyncio.get_running_loop()
        if loop not in self._mailboxes:
            self._mailboxes[loop] = _Mailbox(loop)
        return self._mailboxes[loop]


class EventStream:
    """The output of one request as it comes: `async for event in stream`.

    `completion` tells what has come so far. Closing or dropping it ends the request.
    """

    def __init__(self, sequence: Sequence, worker: Worker, mailbox: _Mailbox) -> None:
        self._sequence, self._worker, self._mailbox = sequence, worker, mailbox
        self._reader = EventReader(sequence)
        mailbox.open(sequence)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._reader.ended:
            raise StopAsyncIteration
        try:
            while not self._reader.has_more:
                await self._mailbox.news_of(self._sequence)
        except asyncio.CancelledError:
            self.end()
            raise
        if self._sequence.error is not None:
            self._reader.ended = True
            raise self._sequence.error
        return self._reader.take()

    def end(self) -> None:
        """End the request if it is not over; who reads it elsewhere gets what has come."""
        if not self._sequence.over:
            self._worker.abandon([self._sequence])
        self._mailbox.close(self._sequence)

    async def aclose(self) -> None:
        """End the request if it is not over."""
        self.end()
        self._reader.ended = True

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # not one whose making was interrupted
            self.end()

    @property
    def completion(self) -> Completion:
        """What has come so far."""
        return self._sequence.completion()

    @property
    def prompt_tokens_done(self) -> int:
        """Tokens of the prompt that are computed by now, or were in the cache."""
        return self._sequence.prompt_tokens_done


class _Mailbox:
    """Wakes the tasks of one event loop when their sequences have news.

    `put` is called on the thread that runs the engine, everything else in the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # which is the key to this, and should not live by it
        self._new: dict[Sequence, None] = {}
        self._called = False  # `_deliver` will come
        self._bells: dict[Sequence, asyncio.Event] = {}

    def open(self, sequence: Sequence) -> None:
        """Let a sequence ring here."""
        sequence.sink = self.put
        self._bells[sequence] = asyncio.Event()

    def close(self, sequence: Sequence) -> None:
        """Its owner listens no more."""
        bell = self._bells.pop(sequence, None)
        if bell is not None:
            bell.set()  # for whoever waits in another task

    async def news_of(self, sequence: Sequence) -> None:
        """Wait until something has come since the last call."""
        bell = self._bells[sequence]
        await bell.wait()
        bell.clear()

    def put(self, sequence: Sequence) -> None:
        """Something is new of a sequence."""
        self._new[sequence] = None
        if not self._called:
            self._called = True
            try:
                loop = self._loop()
                if loop is None:
                    raise RuntimeError("the event loop is gone")
                loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # it was closed: every sequence of it shall hear that
                self._called = False
                raise

    def _deliver(self) -> None:
        self._called = False  # first: what comes from here on calls again
        while self._new:
            sequence, _ = self._new.popitem()
            if sequence.over:
                self.close(sequence)
            elif sequence in self._bells:
                self._bells[sequence].set()


def _salt(text: str | None) -> bytes:
    return b"" if text is None else text.encode("utf-8", "surrogatepass")
