"""What breaks servers, asked of a real one: crowds, those who leave, bursts, slow ones, schemas.

`make soak` runs all of it at length; `serve/test_soak.py` a little of each. Every function asserts
that nobody's text was lost, mixed up or changed.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from live_server import PATIENCE_S, Live, serving

from trilobit.bundled import DEFAULT

PROMPTS = [f"{name} had a {thing}. One day" for name in ("Tom", "Lily") for thing in "abcd"]
KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1, "top_k": 20, "logprobs": 2},
    {"frequency_penalty": 0.6, "min_p": 0.02, "stop": ["\n"]},
    {"guided_regex": "[a-z ]{10,60}"},
]
REFUSED = (429, 503)
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def body_of(number: int, **more: Any) -> dict[str, Any]:
    """A request, one of many; its answer is always the same."""
    kind = KINDS[number % len(KINDS)]
    prompt = PROMPTS[number % len(PROMPTS)]
    return {"prompt": prompt, "seed": number, "max_tokens": 40, "stream": True, **kind, **more}


def client_of(live: Live) -> httpx.AsyncClient:
    """A client of any number of connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=live.url, timeout=PATIENCE_S, trust_env=False, limits=limits)


async def told(client: httpx.AsyncClient, body: dict[str, Any], *, again: bool = False) -> str:
    """What a stream says, which comes to its end. again: ask until there is a place."""
    while True:
        async with client.stream("POST", "/v1/completions", json=body) as stream:
            if not again or stream.status_code not in REFUSED:
                assert stream.status_code == 200
                lines = [line async for line in stream.aiter_lines() if line.startswith("data: ")]
                break
        await asyncio.sleep(0.01)
    assert lines[-1] == "data: [DONE]"
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])


async def alone(live: Live, count: int) -> list[str]:
    """What each of the first requests is answered when nobody else asks."""
    async with client_of(live) as client:
        return [await told(client, body_of(number)) for number in range(count)]


async def crowd(
    live: Live, wanted: list[str], *, clients: int, each: int, again: bool = False
) -> None:
    """Many clients, one stream after the other. again: who is refused asks again."""

    async def one(number: int) -> None:
        draw = random.Random(number)
        async with client_of(live) as client:
            for _ in range(each):
                asked = draw.randrange(len(wanted))
                assert await told(client, body_of(asked), again=again) == wanted[asked]

    await asyncio.gather(*map(one, range(clients)))


async def leavers(live: Live, wanted: list[str], count: int, *, at_once: int = 16) -> None:
    """Clients who leave at random points, beside some who stay."""
    places = asyncio.Semaphore(at_once)

    async def leave(number: int) -> None:
        draw = random.Random(number)
        async with places:
            with socket.create_connection(address(live), PATIENCE_S) as sock:
                sock.setblocking(False)
                more = {"max_tokens": 400, "ignore_eos": True, "n": draw.choice((1, 1, 4))}
                sent = whole = _request(body_of(number, **more), "Connection: close")
                if draw.random() < 0.2:
                    sent = sent[: draw.randrange(len(sent))]
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, sent)
                for _ in range(draw.choice((0, 1, 3, 30)) if sent == whole else 0):
                    if not await loop.sock_recv(sock, 200):
                        break

    # Those who left keep their places until the server hears of it.
    staying = crowd(live, wanted, clients=4, each=max(2, count // 50), again=True)
    await asyncio.gather(staying, *map(leave, range(count)))
    await nothing_is_held(live)


def _request(body: dict[str, Any], *headers: str) -> bytes:
    data = json.dumps(body).encode()
    more = "".join(f"{line}\r\n" for line in (f"Content-Length: {len(data)}", *headers))
    return _HEAD + more.encode() + b"\r\n" + data


async def nothing_is_held(live: Live) -> None:
    """Until no place and no block is anybody's."""
    for measure in ("trilobit_places_taken", "trilobit_kv_blocks_held", "trilobit_running"):
        await asyncio.to_thread(live.wait_for, measure)


async def burst(live: Live, wanted: list[str], count: int) -> list[float]:
    """So many at once: who is not served knows it after so many seconds, which are returned.

    The server stands still until all are there: none is answered before the last one asks.
    """
    refused: list[float] = []
    # Bare connections, made before: a client library would take longer than the server.
    ways = [await asyncio.open_connection(*address(live)) for _ in range(count)]

    live.process.send_signal(signal.SIGSTOP)
    for number, (_, writer) in enumerate(ways):
        writer.write(_request(body_of(number % len(wanted), stream=False), "Connection: close"))
        await writer.drain()
    live.process.send_signal(signal.SIGCONT)
    started = time.perf_counter()

    async def one(number: int) -> None:
        reader, writer = ways[number]
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status in REFUSED:
            refused.append(time.perf_counter() - started)
            assert b"\r\nretry-after: " in head.lower()
        else:
            assert status == 200
            assert json.loads(body)["choices"][0]["text"] == wanted[number % len(wanted)]
        writer.close()

    await asyncio.gather(*map(one, range(count)))
    await nothing_is_held(live)
    return sorted(refused)


async def slow_ones(live: Live, wanted: list[str], *, senders: int, readers: int) -> None:
    """Some who never finish asking and some who never read, beside some who are served."""
    socks = [socket.create_connection(address(live), PATIENCE_S) for _ in range(senders + readers)]
    try:
        for sock in socks[:senders]:
            sock.sendall(_HEAD + b"Content-Le")
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
        for sock in socks[senders:]:
            sock.sendall(ask)
        await crowd(live, wanted, clients=4, each=4)
    finally:
        for sock in socks:
            sock.close()
    await nothing_is_held(live)


async def schemas(live: Live, count: int, *, first: int = 0) -> None:
    """So many different schemas, a third of them wrong."""
    async with client_of(live) as client:

        async def one(number: int) -> None:
            kind = "integer" if number % 3 else "no such type"
            schema = {"type": "object", "properties": {f"p{number}": {"type": kind}}}
            body = body_of(0, stream=False, max_tokens=3) | {"guided_json": schema}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == (200 if number % 3 else 400), answer.text

        for begin in range(first, first + count, 16):
            await asyncio.gather(*map(one, range(begin, min(begin + 16, first + count))))


def address(live: Live) -> tuple[str, int]:
    """Where it listens."""
    url = httpx.URL(live.url)
    return url.host, url.port or 0


def rss_mb(live: Live) -> float:
    """What the server has in memory."""
    status = Path(f"/proc/{live.process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


def _run(name: str, live: Live, work: Callable[[], Awaitable[Any]]) -> Any:
    started = time.monotonic()
    got = asyncio.run(work())  # type: ignore[arg-type]
    print(f"{name:44} {time.monotonic() - started:7.1f} s {rss_mb(live):8.1f} MB", flush=True)
    return got


def main(minutes: float) -> None:
    """All of it, at length."""
    settings = {
        "models": {DEFAULT: DEFAULT},
        "engine": {"max_sequences": 64},
        "sender_s": 5,
        "reader_s": 5,
    }
    with serving(settings=settings) as live:
        wanted = _run("alone", live, lambda: alone(live, 32))
        _run("64 clients, 50 streams each", live, lambda: crowd(live, wanted, clients=64, each=50))
        _run("1,000 who leave", live, lambda: leavers(live, wanted, 1000))
        refused = _run("512 at once, for 128 places", live, lambda: burst(live, wanted, 512))
        assert refused
        print(
            f"  refused: {len(refused)}, median {refused[len(refused) // 2] * 1e3:.0f} ms, "
            f"last {refused[-1] * 1e3:.0f} ms"
        )
        slow = {"senders": 500, "readers": 100}
        _run("500 slow senders, 100 slow readers", live, lambda: slow_ones(live, wanted, **slow))
        _run("10,000 schemas", live, lambda: schemas(live, 10_000))
        before, end = rss_mb(live), time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            _run("load", live, lambda: crowd(live, wanted, clients=64, each=50))
        grown = rss_mb(live) / before - 1
        print(f"grown by {grown:.2%} in {minutes:g} minutes of load")
        assert grown < 0.02
        assert live.stop() == 0


if __name__ == "__main__":
    main(float(sys.argv[1]))
