"""Servers that a front starts itself: as many as there is work for, and another for one that dies.

Each is a process on a free port of this machine, with a key that nobody but the front has. One that
is to go gets no more requests, and is ended when its last answer is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence

from trilobit.errors import RequestError
from trilobit.serve.replicas import Replica, Replicas

_LOOK_S = 0.1  # between looks at all of them
_IDLE_S = 60.0  # that there must have been room for all in one server less, before one goes
_LONG_S = 60.0  # who lived so long did not die of its start
_SHORTEST_S, _LONGEST_S = 1.0, 60.0  # before another is started for one that died
_LAST_S = 10.0  # for those that have nothing to do any more to end
_log = logging.getLogger("trilobit")


class Server(Replica):
    """One of them."""

    def __init__(self, url: str, key: str, process: subprocess.Popen[str]) -> None:
        super().__init__(url, key)
        self.process = process
        self.since_s = time.monotonic()
        self.is_ending = False  # was told to


class Servers:
    """At least `least`, at most `most`.

    command: starts one, which prints its address and takes `key`. environment: of it, beside ours.
    places: answers that one writes at once, beyond which they wait. idle_s: see `_IDLE_S`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        key: str,
        least: int,
        most: int,
        places: int,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._command, self._environment, self._key = list(command), dict(environment), key
        self._least, self._most, self._places, self._idle_s = least, most, places, idle_s
        self._processes: list[subprocess.Popen[str]] = []  # that may live
        self._own: list[Server] = []  # that are asked
        self._old: list[Server] = []  # of them, that are to be replaced
        self._leaving: list[Server] = []  # that are not asked any more
        self._pause_s, self._not_before_s = _SHORTEST_S / 2, 0.0
        self._roomy_s: float | None = None  # since when there has been room to spare

    def begin(self, replicas: Replicas) -> None:
        """Start the first ones.

        Raises SystemExit where one ends by itself, which has then said why; RequestError where a
        signal ended it.
        """
        self._replicas = replicas
        self._begun(self._start())  # alone: what is wrong is told once
        for process in [self._start() for _ in range(self._least - 1)]:
            self._begun(process)

    def _begun(self, process: subprocess.Popen[str]) -> None:
        url = _address(process)
        if url is None:
            code = process.wait()
            if code < 0:
                raise RequestError(f"a server was ended by signal {-code} before it served")
            raise SystemExit(code or 1)
        self._take(url, process)

    async def keep(self) -> None:
        """Have as many as there is work for, and whole ones; never ends."""
        while True:
            self._bury()
            wanted = self._wanted()
            if wanted > len(self._own):
                if time.monotonic() >= self._not_before_s:
                    failed = await self._add()
                    if failed is not None:
                        self._wait_longer(0, failed)
            elif self._old and not self._leaving:
                await self._replace_one()
            elif wanted < len(self._own):
                self._retire(min(self._own, key=lambda one: one.running))
            await asyncio.sleep(_LOOK_S)

    def renew(self) -> None:
        """Replace all that run now, one at a time; no stream is lost."""
        self._old = list(self._own)

    async def _replace_one(self) -> None:
        failed = await self._add()
        if failed is not None:
            _log.warning("%s; those that run stay as they are", failed)
            self._old.clear()
            return
        self._retire(self._old.pop(0))
        if not self._old:
            _log.warning("all servers are replaced")

    async def close(self) -> None:
        """End all of them, which have nothing to do any more."""
        ending = [one.process for one in self._leaving if one.is_ending]
        for process in self._processes:
            if process not in ending:
                process.terminate()
        deadline_s = time.monotonic() + _LAST_S
        while time.monotonic() < deadline_s and any(one.poll() is None for one in self._processes):
            await asyncio.sleep(_LOOK_S)
        self.kill()

    def kill(self) -> None:
        """Whatever still lives is gone."""
        for process in self._processes:
            process.kill()
            process.wait()
            _close(process)
        self._processes.clear()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._environment,
            start_new_session=True,  # Ctrl-C is for the front, which lets them end what they write
        )
        self._processes.append(process)
        return process

    async def _add(self) -> str | None:
        """One more, or why there is none."""
        try:
            process = self._start()
        except OSError as error:
            return f"a server could not be started ({error.strerror})"
        url = await asyncio.to_thread(_address, process)
        if url is None:
            code = await asyncio.to_thread(process.wait)
            self._forget(process)
            return f"a server ended {_how(code)} before it served"
        self._take(url, process)
        return None

    def _take(self, url: str, process: subprocess.Popen[str]) -> None:
        server = Server(url, self._key, process)
        self._own.append(server)
        self._replicas.all.append(server)

    def _retire(self, server: Server) -> None:
        self._own.remove(server)
        self._replicas.all.remove(server)
        server.is_alive = False
        self._leaving.append(server)

    def _bury(self) -> None:
        for one in list(self._leaving):
            if not one.running and not one.is_ending:
                one.is_ending = True
                one.process.terminate()  # once: a second time would cut it short
            if one.process.poll() is not None:
                self._leaving.remove(one)
                self._forget(one.process)
        for one in list(self._own):
            code = one.process.poll()
            if code is not None:
                self._own.remove(one)
                self._replicas.all.remove(one)
                self._old = [old for old in self._old if old is not one]
                self._forget(one.process)
                lived_s = time.monotonic() - one.since_s
                self._wait_longer(lived_s, f"the server at {one.url} ended {_how(code)}")

    def _forget(self, process: subprocess.Popen[str]) -> None:
        self._processes.remove(process)
        _close(process)

    def _wait_longer(self, lived_s: float, what: str) -> None:
        longer_s = _SHORTEST_S if lived_s > _LONG_S else 2 * self._pause_s
        self._pause_s = min(_LONGEST_S, longer_s)
        self._not_before_s = time.monotonic() + self._pause_s
        _log.warning("%s; the next is started in %g s at the earliest", what, self._pause_s)

    def _wanted(self) -> int:
        count, now_s = len(self._own), time.monotonic()
        running = sum(one.running for one in self._own)
        if running > self._places * count:
            self._roomy_s = None
            return max(self._least, min(self._most, count + 1))
        if count <= self._least or 2 * running > self._places * (count - 1):
            self._roomy_s = None
        elif self._roomy_s is None:
            self._roomy_s = now_s
        elif now_s - self._roomy_s >= self._idle_s:
            self._roomy_s = None
            return count - 1
        return max(self._least, count)


def _address(process: subprocess.Popen[str]) -> str | None:
    """Where one serves, once it does; None when it ended before."""
    assert process.stdout is not None
    found = re.search(r"https?://\S+", process.stdout.readline())
    return None if found is None else found[0]


def _close(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.close()


def _how(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with code {code}"
