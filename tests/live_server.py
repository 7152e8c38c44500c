"""A real `trilobit serve` in a process of its own, for tests that talk to it over loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

PATIENCE_S = 120  # a hang, not a slow machine


@dataclass(frozen=True)
class Live:
    """A server that answers. url: without a path."""

    url: str
    process: subprocess.Popen[str]

    def client(self, **settings: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **settings)  # type: ignore[arg-type]

    def stop(self) -> int:
        """Have it drain; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Live]:
    """`trilobit serve ARGUMENTS` on a free port, until the context ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trilobit", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        if found is None:
            raise AssertionError(f"no address in {line!r}: {process.stderr.read()}")
        yield Live(found[0], process)
    finally:
        process.kill()
        process.communicate()
