"""`AsyncLLM`: a model for programs of many tasks. `LLM`'s engine, without a thread a request.

One thread runs the engine while there are requests; what it makes wakes the tasks that wait for it,
all of a step with one call into the event loop. A reader that is slow gets more at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Unpack
from weakref import WeakKeyDictionary

from trilobit.bundled import DEFAULT
from trilobit.engine.blocks import KvDtype
from trilobit.engine.engine import Engine
from trilobit.engine.event import Completion, Score, TokenLogprob
from trilobit.engine.options import Options, options_of
from trilobit.engine.reading import Logprobs, TopLogprobs
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.event_stream import EventStream, Mailbox
from trilobit.inputs import Message, Prompt, TokenIds
from trilobit.model.config import ModelConfig
from trilobit.opened import open_model
from trilobit.progress import Watch
from trilobit.sampling import SamplingParams
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
        self._mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()

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

    @property
    def sampling(self) -> SamplingParams:
        """What the model's makers say of how its tokens are chosen; None in it: nothing."""
        return self._prompter.sampling

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
        ids = self._prompter.ids(text, beyond=1)
        reading = Logprobs(ids, first)
        read = ids[:-1] or ids  # the last one is foretold only
        request = Request(prompt=read, params=SamplingParams(), seed=0, limit=len(read))
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

    def _mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        if loop not in self._mailboxes:
            self._mailboxes[loop] = Mailbox(loop)
        return self._mailboxes[loop]


def _salt(text: str | None) -> bytes:
    return b"" if text is None else text.encode("utf-8", "surrogatepass")
