"""One command as several processes that train together, on this machine or on several.

Each is told its place as by torchrun (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...), and the first of a
machine speaks for all of it. None is started again: the same command goes on from the last
checkpoint.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from trilobit.errors import RequestError

_PATIENCE_S = 10.0  # with processes that end by Ctrl-C
_LOOK_S = 0.05
_TELLER = "TRILOBIT_TELLER"  # a file that the first to fail makes: its number here


def launched() -> bool:
    """Whether this is one of several already."""
    return "RANK" in os.environ


def may_tell() -> bool:
    """Whether none of those that run together here has told of its failure before this one."""
    teller = os.environ.get(_TELLER)
    if teller is not None:
        try:
            with open(teller, "x") as file:
                file.write(os.environ["LOCAL_RANK"])
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """How many: `here` on each of `nodes` machines, of which this is number `node`, from 0.

    main: HOST:PORT, where the processes of several machines meet, a free port of machine 0.
    Raises RequestError for what cannot be.
    """

    here: int = 1
    nodes: int = 1
    node: int = 0
    main: str | None = None

    def __post_init__(self) -> None:
        if self.node >= self.nodes:
            raise RequestError(
                f"--node-rank is {self.node}; of {self.nodes} nodes the last is {self.nodes - 1}"
            )
        if self.nodes > 1 and self.main is None:
            raise RequestError(
                "several nodes must meet; give --main HOST:PORT, a free port of node 0, to each"
            )
        host, _, port = (self.main or "localhost:1").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port[:9]) < 1 << 16:
            raise RequestError(f"--main is {self.main!r:.100}; give HOST:PORT")

    @property
    def alone(self) -> bool:
        """Whether one process is all."""
        return self.here * self.nodes == 1

    def run(self, words: Sequence[str]) -> int:
        """Run `trilobit WORDS` so, to its end; the exit code. words: of this very command."""
        first = self.node * self.here
        print(
            f"{self.here * self.nodes} processes; here number {first}"
            + (f" to {first + self.here - 1}" if self.here > 1 else ""),
            file=sys.stderr,
        )
        host, _, port = (self.main or f"localhost:{_free_port()}").rpartition(":")
        started: list[subprocess.Popen[bytes]] = []
        told: list[IO[bytes]] = []
        with ExitStack() as stack:
            teller = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "teller"
            stack.callback(_end, started)
            for local in range(self.here):
                place = {
                    "RANK": first + local,
                    "LOCAL_RANK": local,
                    "WORLD_SIZE": self.here * self.nodes,
                    "LOCAL_WORLD_SIZE": self.here,
                    "MASTER_ADDR": host,
                    "MASTER_PORT": port,
                    # The run chooses its threads itself; accelerate warns where none are said.
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
                    _TELLER: teller,
                }
                told.append(stack.enter_context(tempfile.TemporaryFile()))
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "trilobit", *words],
                        env={**os.environ, **{name: str(value) for name, value in place.items()}},
                        stderr=told[-1] if local else None,
                    )
                )
            try:
                return self._watch(started, told, teller)
            except KeyboardInterrupt:  # which a terminal gives to all of them
                for process in started:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_PATIENCE_S)
                return 130

    def _watch(
        self, started: list[subprocess.Popen[bytes]], told: list[IO[bytes]], teller: Path
    ) -> int:
        while True:
            codes = [process.poll() for process in started]
            failed = [local for local, code in enumerate(codes) if code]
            if not failed and None not in codes:
                return 0
            if failed:
                return self._tell(started, told, failed, teller)
            time.sleep(_LOOK_S)

    def _tell(
        self,
        started: list[subprocess.Popen[bytes]],
        told: list[IO[bytes]],
        failed: list[int],
        teller: Path,
    ) -> int:
        # Whoever waits for one that failed fails, too, and says less: the first to speak is heard.
        local = min(
            failed, key=lambda one: started[one].returncode >= 0
        )  # signals come from outside
        code = started[local].returncode
        if code < 0:
            print(
                f"error: process {self.node * self.here + local} was ended by signal {-code}; run "
                "the same command again to go on from the last checkpoint",
                file=sys.stderr,
            )
            return 2
        if teller.exists() and (who := teller.read_text()):
            local = int(who)  # the others were silent, whoever ended first
            code = started[local].wait(_PATIENCE_S)
        if local:
            told[local].seek(0)
            sys.stderr.write(told[local].read().decode("utf-8", "replace"))
        return code


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    # At once: without the others they would fail in many words, and no checkpoint is lost by it.
    for process in started:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
        return port
