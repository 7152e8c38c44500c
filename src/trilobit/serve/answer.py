"""How a route asks a model: `ask` queues a request, and gives its `Answer` to be read.

A dialect translates what it was sent into a prompt and `SamplingParams`, and what comes back into
its own shape; everything between is here, the same for all of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from dataclasses import replace

from starlette.requests import Request

from trilobit.async_llm import AsyncLLM, EventStream
from trilobit.engine.event import Completion, Event
from trilobit.inputs import Message, Prompt
from trilobit.sampling import SamplingParams
from trilobit.serve.errors import ApiError
from trilobit.serve.limits import exits
from trilobit.serve.service import Service, service_of

_SEED_BITS = 53  # JavaScript's numbers hold them


class Answer:
    """What one prompt is answered with, in one or several choices.

    Iterating gives (choice, event) as they come; `complete` waits for all. n: choices. seed: of
    the first choice; the next one's is one more. id: a name that no other answer has.
    """

    def __init__(
        self, service: Service, name: str, llm: AsyncLLM, streams: list[EventStream], seed: int
    ) -> None:
        self.model, self.llm, self.seed = name, llm, seed
        self.created = int(time.time())
        self.id = secrets.token_hex(12)
        self.n = len(streams)
        self._service, self._streams = service, streams

    @property
    def fingerprint(self) -> str:
        """Equal for equal answers to equal requests with equal seeds."""
        return f"fp_{self.llm.fingerprint}"

    @property
    def completions(self) -> list[Completion]:
        """What has come so far, of each choice."""
        return [stream.completion for stream in self._streams]

    async def complete(self) -> list[Completion]:
        """Wait for all choices."""
        async for _ in self:
            pass
        return self.completions

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        if len(self._streams) == 1:
            async for event in self._streams[0]:
                yield 0, event
            return
        news: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue()

        async def read(choice: int, stream: EventStream) -> None:
            try:
                async for event in stream:
                    news.put_nowait((choice, event))
                news.put_nowait(None)
            except Exception as error:
                news.put_nowait(error)

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

    async def close(self) -> None:
        """End what still runs."""
        for stream in self._streams:
            await stream.aclose()


async def ask(
    request: Request,
    *,
    model: str | None,
    params: SamplingParams,
    prompt: Prompt | None = None,
    messages: Items[Message] | None = None,
    n: int = 1,
) -> Answer:
    """Ask a model to continue a prompt, or to answer messages; it is queued when this returns.

    What is asked ends with the HTTP request, whatever ends that. Raises ApiError or TrilobitError
    for what cannot be asked.
    """
    service = service_of(request)
    if n > service.settings.choices:
        raise ApiError(
            400, f"n is {n}; this server gives {service.settings.choices} at most", param="n"
        )
    stack = exits(request)
    name = service.host.name(model)
    llm = await stack.enter_async_context(service.host.llm(name))
    stack.enter_context(service.queue.place(n))
    if messages is not None:
        ids = await asyncio.to_thread(llm.chat_ids, messages)
    else:
        assert prompt is not None
        ids = await asyncio.to_thread(llm.ids, prompt)
    seed = secrets.randbits(_SEED_BITS) if params.seed is None else params.seed
    streams = llm.stream_choices(ids, n, replace(params, seed=seed))
    answer = Answer(service, name, llm, streams, seed)
    stack.push_async_callback(answer.close)
    return answer
