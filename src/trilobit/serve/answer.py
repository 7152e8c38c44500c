"""How a route asks a model: `ask` queues a request, and gives its `Answer` to be read.

A dialect translates what it was sent into a prompt and `SamplingParams`, and what comes back into
its own shape; everything between is here, the same for all of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from collections.abc import Sequence as Items
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request

from trilobit.async_llm import AsyncLLM
from trilobit.engine.event import Completion, Event, TokenLogprob, Usage
from trilobit.event_stream import EventStream
from trilobit.inputs import Message, Prompt
from trilobit.sampling import SamplingParams
from trilobit.serve.errors import ApiError
from trilobit.serve.journal import ANSWERS
from trilobit.serve.limits import exits
from trilobit.serve.metrics import Metrics
from trilobit.serve.record import Record
from trilobit.serve.service import service_of
from trilobit.text.tools import Toolbox

# OpenAI's and Anthropic's, of models that say nothing.
_USUAL = SamplingParams(temperature=1)
_SEED_BITS = 53  # JavaScript's numbers hold them


class Answer:
    """What prompts are answered with, each in `n` choices, which are counted through.

    Iterating gives (choice, event) as they come; `complete` waits for all. seed: of the first
    choice; the next one's is one more. id: a name that no other answer has. params: what was asked
    for, and of what was not, what was taken. prompts: token ids.
    prompt_logprobs: of each prompt, where they are asked for.
    """

    def __init__(
        self,
        name: str,
        llm: AsyncLLM,
        *,
        params: SamplingParams,
        prompts: list[list[int]],
        streams: list[EventStream],
        seed: int,
        prompt_logprobs: list[list[TokenLogprob]] | None,
        metrics: Metrics,
        started_s: float,
    ) -> None:
        self.model, self.llm, self.seed = name, llm, seed
        self.params = params
        self.prompts, self.prompt_logprobs = prompts, prompt_logprobs
        self.created = int(time.time())
        self.id = secrets.token_hex(12)
        self.n = len(streams)
        self._streams, self._metrics = streams, metrics
        self._started_s = started_s
        self._error: ApiError | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for equal answers to equal requests with equal seeds."""
        return f"fp_{self.llm.fingerprint}"

    @property
    def completions(self) -> list[Completion]:
        """What has come so far, of each choice."""
        return [stream.completion for stream in self._streams]

    def prompt_of(self, choice: int) -> int:
        """The number of the prompt that a choice belongs to."""
        return choice * len(self.prompts) // self.n

    @property
    def usages(self) -> list[Usage]:
        """Tokens so far, of each prompt with all its choices: it is computed once for them."""
        each = self.n // len(self.prompts)
        done = self.completions
        return [
            Usage(
                prompt_tokens=done[first].prompt_tokens,
                cached_tokens=done[first].cached_tokens,
                output_tokens=sum(len(one.token_ids) for one in done[first : first + each]),
            )
            for first in range(0, self.n, each)
        ]

    async def complete(self) -> list[Completion]:
        """Wait for all choices."""
        async for _ in self:
            pass
        return self.completions

    def keep(self, record: Record, *, model: str) -> None:
        """Write all of it into a log. model: as it was opened."""
        each = self.n // len(self.prompts)
        for number, prompt in enumerate(self.prompts):
            record.add(
                model=model,
                fingerprint=self.llm.fingerprint,
                options={"context": self.llm.context, "kv_dtype": self.llm.kv_dtype},
                prompt=prompt,
                params=replace(self.params, seed=(self.seed + number * each) % (1 << 64)),
                outputs=self.completions[number * each : (number + 1) * each],
            )

    def end(self, error: ApiError) -> None:
        """End what still runs; whoever reads it is told why."""
        self._error = error
        for stream in self._streams:
            stream.end()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        async with aclosing(self._events()) as events:
            watched = self._metrics.watched(self.model, events, self._started_s)
            async for choice, event in watched:
                if self._error is not None:
                    break
                yield choice, event
        if self._error is not None:
            raise self._error

    async def _events(self) -> AsyncGenerator[tuple[int, Event], None]:
        if self.n == 1:
            async for event in self._streams[0]:
                yield 0, event
            return
        # What a slow reader leaves there waits in the streams, as one event for each.
        news: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue(self.n)

        async def read(choice: int, stream: EventStream) -> None:
            try:
                async for event in stream:
                    await news.put((choice, event))
                await news.put(None)
            except Exception as error:
                await news.put(error)

        readers = [asyncio.ensure_future(read(*pair)) for pair in enumerate(self._streams)]
        try:
            left = len(readers)
            while left:
                new = await news.get()
                if isinstance(new, Exception):
                    raise new
                if new is None:
                    left -= 1
                else:
                    yield new
        finally:
            for reader in readers:
                reader.cancel()


async def ask(
    request: Request,
    *,
    model: str | None,
    params: SamplingParams,
    otherwise: SamplingParams = _USUAL,
    prompt: Prompt | None = None,
    prompts: Items[Prompt] = (),
    messages: Items[Message] | None = None,
    toolbox: Toolbox | None = None,
    thinking: bool | None = None,
    n: int = 1,
    prompt_logprobs: int | None = None,
    cache_salt: str | None = None,
) -> Answer:
    """Ask a model to continue a prompt or several, or to answer messages; it is queued then.

    otherwise: of what params leave open and the model says nothing. prompt_logprobs: compute those
    of the prompts first, with so many likeliest tokens in the place of each. toolbox: what may or
    must be called in answer to messages; thinking: whether to think first. What is asked ends with
    the HTTP request, whatever ends that.

    Raises ApiError or TrilobitError for what cannot be asked.
    """
    started_s = time.perf_counter()
    service = service_of(request)
    host = service.host
    name = host.name(model) if messages is None else await host.name_for_chat(model)
    asked = [prompt] if prompt is not None else list(prompts)
    choices = n * (1 if messages is not None else len(asked))
    most = min(service.settings.choices, service.queue.places)
    if choices > most:
        raise ApiError(
            400, f"n: {choices} choices for all prompts; this server gives {most}", param="n"
        )
    stack = exits(request)
    stack.enter_context(service.queue.place(choices - 1))  # it has one already
    llm = await stack.enter_async_context(service.host.llm(name))

    def ids_of_all() -> list[list[int]]:
        if messages is not None:
            return [llm.chat_ids(messages, toolbox, thinking=thinking)]
        return [llm.ids(one) for one in asked]

    ids = await asyncio.to_thread(ids_of_all)
    params = params.settled(llm.sampling, otherwise)
    if toolbox is not None:
        params = llm.answering(ids[0], params, toolbox)
    await llm.prepare(params)
    seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
    logprobs = None
    if prompt_logprobs is not None:
        scored = (llm.prompt_logprobs(one, prompt_logprobs, cache_salt=cache_salt) for one in ids)
        logprobs = [await one for one in scored]
    streams = [
        stream
        for number, one in enumerate(ids)
        for stream in llm.stream_choices(
            one, n, replace(params, seed=(seed + number * n) % (1 << 64)), cache_salt=cache_salt
        )
    ]
    answer = Answer(
        name,
        llm,
        params=params,
        prompts=ids,
        streams=streams,
        seed=seed,
        prompt_logprobs=logprobs,
        metrics=service.metrics,
        started_s=started_s,
    )
    request.scope[ANSWERS].append(answer)
    if service.record is not None:
        stack.callback(answer.keep, service.record, model=service.host.models[name])
    stack.enter_context(service.answering(answer))
    return answer
