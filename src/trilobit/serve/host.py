"""Several models by name: opened when asked for, closed when nobody has asked for a while.

Who uses a model holds it: it is not closed under anybody's hands, and a request that comes while it
is being opened waits for the same opening. Where there is a limit of memory, what nobody uses makes
room for what is asked for, the longest unused first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Generic, TypeVar

from trilobit.async_llm import AsyncLLM
from trilobit.embedder import Embedder
from trilobit.engine.memory import MemoryTooSmall
from trilobit.engine.options import EngineOptions
from trilobit.errors import RequestError
from trilobit.machine import peak_rss_mb
from trilobit.serve.errors import ApiError
from trilobit.serve.purpose import purpose_of

_EMBEDDING_THREADS = 4  # calls at once; they share their steps
_MB = 1_000_000
_REQUESTS_MB = 64  # for bodies, texts and answers, beside what models take

Model = TypeVar("Model", AsyncLLM, Embedder)


class Held(Generic[Model]):
    """A model that may be open, and how many use it."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.users = 0
        self.last_used_s = time.monotonic()


class Host:
    """The models of a server.

    models: name -> what to open; the first is meant where no name is given, and for conversations
    the first that was made to chat. memory_bytes: of this process, at most.
    """

    def __init__(
        self, models: Mapping[str, str], options: EngineOptions, memory_bytes: int | None = None
    ) -> None:
        self.models, self.options = dict(models), options
        # By what is opened: two names may mean the same.
        self._llms: dict[str, Held[AsyncLLM]] = {}
        self._embedders: dict[str, Held[Embedder]] = {}
        self._changing = asyncio.Lock()  # one is opened or closed at a time
        self._memory_bytes = memory_bytes
        self._own_mb = peak_rss_mb() + _REQUESTS_MB
        # Of their own: tokenizing for chats must not wait for them.
        self.embedding_threads = ThreadPoolExecutor(_EMBEDDING_THREADS, "trilobit-embedding")

    def name(self, asked: str | None) -> str:
        """The model's name; ApiError for one that is not here."""
        if not asked:
            return next(iter(self.models))
        if asked not in self.models:
            here = ", ".join(list(self.models)[:10])
            raise ApiError(
                404,
                f"no model {asked[:80]!r} here; this server has {here}",
                param="model",
                code="model_not_found",
            )
        return asked

    async def name_for_chat(self, asked: str | None) -> str:
        """The same for a conversation: without a name, the first model that was made to chat."""
        if asked or len(self.models) == 1:
            return self.name(asked)
        return await asyncio.to_thread(self._first_that_chats) or self.name(None)

    def _first_that_chats(self) -> str | None:
        for name, model in self.models.items():
            purpose = purpose_of(model)
            if purpose is not None and purpose.chat:
                return name
        return None

    def open_first(self) -> None:
        """Open the first model here and now, so that what is wrong with it shows before a start."""
        model = next(iter(self.models.values()))
        self._llms.setdefault(model, Held()).model = self._llm(model)

    def opened(self) -> dict[str, AsyncLLM]:
        """Name -> model, of those that generate and are open."""
        found = {name: self._llms.get(model) for name, model in self.models.items()}
        return {name: held.model for name, held in found.items() if held and held.model}

    @asynccontextmanager
    async def llm(self, asked: str | None) -> AsyncIterator[AsyncLLM]:
        """A model that generates, opened and held."""
        model = self.models[self.name(asked)]
        held = self._llms.setdefault(model, Held())
        async with self._using(held, lambda: self._llm(model)) as llm:
            yield llm

    @asynccontextmanager
    async def embedder(self, asked: str | None) -> AsyncIterator[Embedder]:
        """A model that makes vectors, opened and held."""
        model = self.models[self.name(asked)]
        held = self._embedders.setdefault(model, Held())
        async with self._using(held, lambda: self._embedder(model)) as embedder:
            yield embedder

    async def close_idle(self, idle_s: float) -> None:
        """Close what nobody has used for so long."""
        before = time.monotonic() - idle_s
        async with self._changing:
            for held in self._idle():
                if held.last_used_s < before:
                    await _close(held)

    async def close(self) -> None:
        """Close all of them; what runs ends with an error."""
        async with self._changing:
            for held in self._all():
                await _close(held)
        self.embedding_threads.shutdown(wait=False)

    # ---- opening ------------------------------------------------------------------------------

    @asynccontextmanager
    async def _using(self, held: Held[Model], opened: Callable[[], Model]) -> AsyncIterator[Model]:
        held.users += 1
        try:
            if held.model is None:
                async with self._changing:
                    if held.model is None:
                        held.model = await self._with_room(opened)
            yield held.model
        finally:
            held.users -= 1
            held.last_used_s = time.monotonic()

    async def _with_room(self, opened: Callable[[], Model]) -> Model:
        """Open a model, and close others for it while there is too little memory."""
        while True:
            try:
                return await asyncio.to_thread(opened)
            except MemoryTooSmall as error:
                idle = self._idle()
                if not idle:
                    if not any(held.model for held in self._all()):
                        raise
                    raise ApiError(
                        503,
                        f"{error} (other models are in use: ask again later)",
                        headers={"Retry-After": "10"},
                    ) from None
                await _close(idle[0])

    def _llm(self, model: str) -> AsyncLLM:
        return AsyncLLM(model, **asdict(replace(self.options, memory_mb=self._left_mb(model))))

    def _embedder(self, model: str) -> Embedder:
        if self.options.adapter is not None:
            raise RequestError(f"{model}: is served with an adapter, and makes no vectors so")
        left_mb = self._left_mb(model)
        embedder = Embedder(model, threads=self.options.threads)
        if left_mb is not None and embedder.memory_bytes > left_mb * _MB:
            embedder.close()
            raise MemoryTooSmall(
                f"{model}: needs {embedder.memory_bytes // _MB:,} MB to make vectors; memory "
                f"allows {left_mb:,} MB"
            )
        return embedder

    def _left_mb(self, model: str) -> int | None:
        if self._memory_bytes is None:
            return None
        used_mb = sum(held.model.memory_bytes for held in self._all() if held.model) / _MB
        left_mb = int(self._memory_bytes / _MB - self._own_mb - used_mb)
        if left_mb < 1:
            raise MemoryTooSmall(
                f"{model}: no memory is left for it: {self._own_mb:,.0f} MB are the server's own, "
                f"{used_mb:,.0f} MB other models', of {self._memory_bytes / _MB:,.0f} MB in all"
            )
        return left_mb

    def _all(self) -> list[Held[AsyncLLM] | Held[Embedder]]:
        return [*self._llms.values(), *self._embedders.values()]

    def _idle(self) -> list[Held[AsyncLLM] | Held[Embedder]]:
        """Those that are open and nobody uses, the longest unused first."""
        idle = [held for held in self._all() if held.model is not None and not held.users]
        return sorted(idle, key=lambda held: held.last_used_s)


async def _close(held: Held[AsyncLLM] | Held[Embedder]) -> None:
    model, held.model = held.model, None
    if isinstance(model, AsyncLLM):
        await model.close()
    elif model is not None:
        await asyncio.to_thread(model.close)
