"""Several models by name: opened when asked for, closed when nobody has asked for a while.

Who uses a model holds it (`Host.hold`): it is not closed under anybody's hands, and a request that
comes while it is being opened waits for the same opening.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Generic, TypeVar

from trilobit.async_llm import AsyncLLM
from trilobit.embedder import Embedder
from trilobit.engine.options import EngineOptions
from trilobit.serve.errors import ApiError

_EMBEDDING_THREADS = 4  # calls at once; they share their steps

Model = TypeVar("Model", AsyncLLM, Embedder)


class Held(Generic[Model]):
    """A model that may be open, and how many use it."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.users = 0
        self.last_used_s = time.monotonic()
        self.opening = asyncio.Lock()


class Host:
    """The models of a server.

    models: name -> what to open; the first is meant where no name is given.
    """

    def __init__(self, models: Mapping[str, str], options: EngineOptions) -> None:
        self.models, self.options = dict(models), options
        # By what is opened: two names may mean the same.
        self._llms: dict[str, Held[AsyncLLM]] = {}
        self._embedders: dict[str, Held[Embedder]] = {}
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

    def open_first(self) -> None:
        """Open the first model here and now, so that what is wrong with it shows before a start."""
        model = next(iter(self.models.values()))
        self._llms.setdefault(model, Held()).model = self._open(model)

    def opened(self) -> dict[str, AsyncLLM]:
        """Name -> model, of those that generate and are open."""
        found = {name: self._llms.get(model) for name, model in self.models.items()}
        return {name: held.model for name, held in found.items() if held and held.model}

    @asynccontextmanager
    async def llm(self, asked: str | None) -> AsyncIterator[AsyncLLM]:
        """A model that generates, opened and held."""
        model = self.models[self.name(asked)]
        held = self._llms.setdefault(model, Held())
        async with _held(held, lambda: self._open(model)) as llm:
            yield llm

    @asynccontextmanager
    async def embedder(self, asked: str | None) -> AsyncIterator[Embedder]:
        """A model that makes vectors, opened and held."""
        model = self.models[self.name(asked)]
        options = self.options
        held = self._embedders.setdefault(model, Held())
        async with _held(held, lambda: Embedder(model, threads=options.threads)) as embedder:
            yield embedder

    async def close_idle(self, idle_s: float) -> None:
        """Close what nobody has used for so long."""
        before = time.monotonic() - idle_s
        for held in self._all():
            if held.model is not None and not held.users and held.last_used_s < before:
                await _close(held)

    async def close(self) -> None:
        """Close all of them; what runs ends with an error."""
        for held in self._all():
            await _close(held)

    def _open(self, model: str) -> AsyncLLM:
        return AsyncLLM(model, **asdict(self.options))

    def _all(self) -> list[Held[AsyncLLM] | Held[Embedder]]:
        return [*self._llms.values(), *self._embedders.values()]


@asynccontextmanager
async def _held(held: Held[Model], opened: Callable[[], Model]) -> AsyncIterator[Model]:
    held.users += 1
    try:
        async with held.opening:
            if held.model is None:
                held.model = await asyncio.to_thread(opened)
        yield held.model
    finally:
        held.users -= 1
        held.last_used_s = time.monotonic()


async def _close(held: Held[AsyncLLM] | Held[Embedder]) -> None:
    model, held.model = held.model, None
    if isinstance(model, AsyncLLM):
        await model.close()
    elif model is not None:
        await asyncio.to_thread(model.close)
