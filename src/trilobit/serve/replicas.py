"""Servers behind a front: which of them live, and which one knows how a conversation begins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import httpx

_CHECK_S = 2.0  # between looks at all of them
_HEALTH_S = 5.0  # that an answer of /health may take
_START = 256  # characters, or token ids, of a prompt by which it is known again
_SPARE = 4  # answers beyond its share that a server gets for knowing a beginning


class Replica:
    """One server. url: without a path. key: that it takes; None: those that come with requests."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key = url, key
        self.is_alive = True  # until it is seen not to be
        self.running = 0  # requests

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While it has one more request."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class Replicas:
    """All of them."""

    def __init__(self, urls: list[str], client: httpx.AsyncClient) -> None:
        self.all: list[Replica] = [Replica(url) for url in urls]
        self._client = client

    def order(self, key: bytes | None) -> list[Replica]:
        """Those who live, in the order they are to be asked in; all, where none seems to.

        key: of a conversation's beginning.

        By rendezvous hashing: when one goes, only its own conversations move. Who has twice his
        share of what runs comes last, whatever he knows.
        """
        # A machine with much to do may be late with its health: better late than refused.
        alive = [one for one in self.all if one.is_alive] or list(self.all)
        if key is None:
            return sorted(alive, key=lambda one: one.running)
        most = 2 * sum(one.running for one in alive) / max(1, len(alive)) + _SPARE
        ranked = sorted(alive, key=lambda one: blake2b(key + one.url.encode()).digest())
        return sorted(ranked, key=lambda one: one.running >= most)

    async def watch(self) -> None:
        """Look again and again whether they live; never ends."""
        while True:
            await asyncio.gather(*map(self.check, self.all))
            await asyncio.sleep(_CHECK_S)

    async def check(self, replica: Replica) -> None:
        """Look whether one lives: whether it makes tokens, not whether it listens."""
        try:
            answer = await self._client.get(f"{replica.url}/health", timeout=_HEALTH_S)
            replica.is_alive = answer.status_code == httpx.codes.OK
        except httpx.HTTPError:
            replica.is_alive = False


def beginning(body: bytes) -> bytes | None:
    """A key of how a request begins, the same as it goes on; None for what has no beginning."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    told = next((asked[name] for name in ("messages", "input", "prompt") if asked.get(name)), None)
    if told is None:
        return None
    before = [asked.get(name) for name in ("model", "cache_salt", "system", "instructions")]
    return blake2b(json.dumps([*before, _first(told)]).encode()).digest()


def _first(told: Any) -> Any:
    """A text's beginning; of messages those up to the first of the user, which never change."""
    if not isinstance(told, list) or not any(isinstance(one, dict) for one in told):
        return told[:_START] if isinstance(told, (str, list)) else told
    for number, one in enumerate(told):
        if isinstance(one, dict) and one.get("role") == "user":
            return told[: number + 1]
    return told[:1]
