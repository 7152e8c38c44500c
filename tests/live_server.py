"""A real server in a process of its own, for tests that talk to it over loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from trilobit import LLM
from trilobit.conversion import convert

PATIENCE_S = 120  # a hang, not a slow machine

# What `trilobit serve` does, with settings that no option gives.
_SET = """
import json, sys
from trilobit.engine.options import EngineOptions
from trilobit.serve import server
from trilobit.serve.app import create_app
from trilobit.serve.server import address_of, bind, run
from trilobit.serve.settings import Settings
server._LAST_WORDS_S, given = json.loads(sys.argv[1])
engine = EngineOptions(**given.pop("engine", {}))
sock = bind("127.0.0.1", 0)
app = create_app(Settings(engine=engine, **given))
run(app, sock, ready=lambda: print(address_of(sock), flush=True))
"""

# `trilobit front`, for which no server is late, nor a reader of its last words.
_PATIENT = f"""
import runpy
from trilobit.serve import front, replicas, server
front._CONNECT_S = replicas._HEALTH_S = server._LAST_WORDS_S = {PATIENCE_S}
runpy.run_module("trilobit", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Live:
    """A server that answers. url: without a path."""

    url: str
    process: subprocess.Popen[str]

    def client(self, **settings: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, **settings)

    def socket(self) -> socket.socket:
        """A bare connection, for what no client sends."""
        address = httpx.URL(self.url)
        return socket.create_connection((address.host, address.port or 0), PATIENCE_S)

    def measure(self, name: str, **labels: str) -> float:
        """A number of /metrics; 0 before there is one."""
        with self.client() as client:
            text = client.get("/metrics").text
        wanted = "".join(rf'(?=[^}}]*{key}="{re.escape(value)}")' for key, value in labels.items())
        found = re.search(rf"^{name}(?:\{{{wanted}[^}}]*\}})? ([^ \n]+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, name: str, value: float = 0, **labels: str) -> None:
        """Until a number of /metrics is so: a client knows of an end before the books do."""
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.measure(name, **labels)) != value:
            assert time.monotonic() < deadline, f"{name} stays {now:g}, not {value:g}"
            time.sleep(0.01)

    def stop(self) -> int:
        """Have it drain; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def with_template(folder: Path, template: str) -> str:
    """The path of the bundled model with a chat template, made in a folder."""
    with LLM() as llm:
        path = llm.path
    convert(path, folder / "hf", to="hf")
    (folder / "hf" / "chat_template.jinja").write_text(template)
    convert(folder / "hf", folder / "model.trilobit")
    return str(folder / "model.trilobit")


@contextmanager
def serving(
    *arguments: str,
    command: str = "serve",
    settings: dict[str, Any] | None = None,
    **environment: str,
) -> Iterator[Live]:
    """`trilobit serve ARGUMENTS` on a free port, or a server of `settings`, until the end."""
    words = [command, "--port", "0", *arguments]
    words = ["-c", _PATIENT, *words] if command == "front" else ["-m", "trilobit", *words]
    if settings is not None:
        words = ["-c", _SET, json.dumps([PATIENCE_S, settings])]
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"https?://\S+", line)
        if found is None:
            raise AssertionError(f"no address in {line!r}: {process.stderr.read()}")
        yield Live(found[0], process)
    finally:
        process.kill()
        process.communicate()
