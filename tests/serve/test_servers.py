"""Servers that a front starts itself: their number, their deaths, and that no stream is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import httpx
import pytest
from fables import command
from live_server import PATIENCE_S, Live, serving
from program import fail

from trilobit.serve.replicas import Replicas
from trilobit.serve.servers import Server, Servers

LONG = {"prompt": "Once upon a time", "max_tokens": 400, "seed": 3, "ignore_eos": True}
KEY = "of-the-front"


def test_an_address_is_no_model_to_start_servers_of() -> None:
    outcome = command("front", "--servers", "2", "http://127.0.0.1:8081")
    assert outcome.code == 2
    assert "--servers starts servers of MODELs here; leave it out" in outcome.err


@contextmanager
def fronting(*words: str) -> Iterator[Live]:
    """`trilobit front --servers WORDS` on a free port; its servers end with it."""
    with serving("--servers", *words, command="front") as live:
        try:
            yield live
        finally:
            live.stop()


def servers_of(client: httpx.Client) -> set[str]:
    return set(client.get("/health").json()["servers"])


def is_gone(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False, timeout=PATIENCE_S)
    except httpx.ConnectError:
        return True
    return False


def text_of(lines: Iterator[str]) -> str:
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data.pop() == "[DONE]"
    return "".join(json.loads(one)["choices"][0]["text"] for one in data)


def test_servers_are_replaced_one_at_a_time_without_losing_a_stream() -> None:
    with fronting("1", "--max-sequences", "4") as front, front.client() as client:
        [before] = servers_of(client)
        bare = httpx.get(f"{before}/v1/models", trust_env=False, timeout=PATIENCE_S)
        assert bare.status_code == 401
        whole = client.post("/v1/completions", json=LONG).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            front.process.send_signal(signal.SIGHUP)
            while before in (now := servers_of(client)):
                time.sleep(0.01)
            [after] = now
            assert text_of(iter([first, *lines])) == whole
        assert client.post("/v1/completions", json=LONG).json()["choices"][0]["text"] == whole
        assert front.stop() == 0
        assert is_gone(before)
        assert is_gone(after)


def test_another_is_started_for_one_that_dies_or_when_many_wait_and_goes_when_they_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = [sys.executable, "-m", "trilobit", "serve", "--port", "0"]

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    async def main(servers: Servers) -> None:
        async with httpx.AsyncClient(
            trust_env=False, timeout=PATIENCE_S, headers={"x-api-key": KEY}
        ) as client:
            replicas = Replicas([], client)
            servers.begin(replicas)
            keeping = asyncio.ensure_future(servers.keep())
            [first] = cast(list[Server], replicas.all)
            first.process.kill()
            await until(lambda: bool(replicas.all) and first not in replicas.all)
            [second] = cast(list[Server], replicas.all)
            assert (await client.get(f"{second.url}/v1/models")).status_code == 200
            assert f"the server at {first.url} ended by signal 9" in caplog.messages[0]
            with second.busy(), second.busy():  # one is answered, one waits
                await until(lambda: len(replicas.all) == 2)
                both = cast(list[Server], list(replicas.all))
                assert second.is_alive
            await until(lambda: len(replicas.all) == 1)
            [gone] = [one for one in both if one not in replicas.all]
            await until(lambda: gone.process.poll() is not None)
            assert gone.process.returncode == 0
            keeping.cancel()
            await servers.close()
            assert all(one.process.returncode is not None for one in both)

    environment = {"TRILOBIT_API_KEY": KEY}
    servers = Servers(command, environment, key=KEY, least=1, most=2, places=1, idle_s=0)
    try:
        asyncio.run(asyncio.wait_for(main(servers), PATIENCE_S))
    finally:
        servers.kill()


def test_one_that_is_to_go_is_ended_when_its_last_answer_is_written() -> None:
    async def main(servers: Servers) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            replicas = Replicas([], client)
            servers.begin(replicas)
            [old] = cast(list[Server], replicas.all)
            with old.busy():
                servers.renew()
                keeping = asyncio.ensure_future(servers.keep())
                while old in replicas.all or not replicas.all:
                    await asyncio.sleep(0)
                for _ in range(3):
                    servers._bury()
                assert old.process.poll() is None
            while old.process.poll() is None:
                await asyncio.sleep(0.01)
            keeping.cancel()
            await servers.close()

    # A process that prints an address and ends by SIGTERM is all that this is about.
    said = "print('http://127.0.0.1:9', flush=True); import time; time.sleep(600)"
    servers = Servers([sys.executable, "-c", said], {}, key=KEY, least=1, most=1, places=1)
    try:
        asyncio.run(asyncio.wait_for(main(servers), PATIENCE_S))
    finally:
        servers.kill()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--servers", "0"], "expected how many, as 2 or 1-4"),
        (["--servers", "3-1"], "expected how many, as 2 or 1-4"),
        (["--servers", "1", "--nonsense"], "No such option '--nonsense'"),
        (["--servers", "1", "--threads", "many"], "--threads"),
        (["--servers", "1", "no/such/model"], "no/such/model"),
        (["--servers", "1", "--request-log", "log"], "several servers cannot write one log"),
        (["--prot", "1", "http://127.0.0.1:1"], "--prot"),
        ([], "name at least one SERVER"),
        (["http://127.0.0.1:99999"], "http://127.0.0.1:99999: expected an address"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words: list[str], told: str) -> None:
    assert told in fail("front", "--port", "0", *words)


def test_a_new_one_that_does_not_start_leaves_the_old_ones_as_they_are(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def main(servers: Servers) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            replicas = Replicas([], client)
            servers.begin(replicas)
            [old] = cast(list[Server], replicas.all)
            once.touch()
            servers.renew()
            keeping = asyncio.ensure_future(servers.keep())
            while not caplog.messages:
                await asyncio.sleep(0.01)
            assert replicas.all == [old]
            once.unlink()
            servers.renew()
            while len(caplog.messages) < 2:
                await asyncio.sleep(0.01)
            assert old not in replicas.all
            assert len(replicas.all) == 1
            keeping.cancel()
            await servers.close()

    once = tmp_path / "broken"
    said = f"""
import os, time
if os.path.exists({str(once)!r}):
    raise SystemExit(3)
print('http://127.0.0.1:9', flush=True)
time.sleep(600)
"""
    servers = Servers([sys.executable, "-c", said], {}, key=KEY, least=1, most=1, places=1)
    try:
        asyncio.run(asyncio.wait_for(main(servers), PATIENCE_S))
    finally:
        servers.kill()
    assert caplog.messages == [
        "a server ended with code 3 before it served; those that run stay as they are",
        "all servers are replaced",
    ]
