"""One address for several servers: who is asked, and what becomes of streams when one dies."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from live_server import PATIENCE_S, Live, serving
from soak import nothing_is_held
from starlette.applications import Starlette

from trilobit.bundled import DEFAULT
from trilobit.engine.options import EngineOptions
from trilobit.serve.app import create_app
from trilobit.serve.front import create_front
from trilobit.serve.replicas import Replicas, beginning
from trilobit.serve.settings import Settings

URLS = ["http://a.test", "http://b.test", "http://c.test"]
ONE = {"prompt": "Once upon a time", "max_tokens": 5, "seed": 3}


def fronting(*servers: Live) -> AbstractContextManager[Live]:
    """`trilobit front` on a free port."""
    return serving("--drain-s", "0.1", *(one.url for one in servers), command="front")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Live, Live]]:
    with serving() as one, serving() as other:
        yield one, other


@pytest.fixture(scope="module")
def front(pair: tuple[Live, Live]) -> Iterator[Live]:
    with fronting(*pair) as live:
        yield live


# ---- through real servers ---------------------------------------------------------------------


def test_what_comes_through_a_front_is_what_a_server_answers(
    pair: tuple[Live, Live], front: Live
) -> None:
    told = []
    for live in (pair[0], front):
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", timeout=PATIENCE_S) as client:
            whole = client.completions.create(model=DEFAULT, **ONE)
            stream = client.completions.create(model=DEFAULT, stream=True, **ONE)
            pieces = [chunk.choices[0].text for chunk in stream]
            told.append((whole.choices[0].text, "".join(pieces), client.models.list().data[0].id))
    assert told[0] == told[1]
    with front.client() as bare:
        wrong = bare.post("/v1/completions", json=ONE | {"telepathy": 1})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "telepathy")
        assert "text/html" in bare.get("/").headers["content-type"]


def test_who_leaves_a_front_frees_his_place_at_the_server(
    pair: tuple[Live, Live], front: Live
) -> None:
    body = ONE | {"max_tokens": 400, "ignore_eos": True, "stream": True}
    with front.client() as client, client.stream("POST", "/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    for live in pair:
        asyncio.run(nothing_is_held(live))


# dialect -> what else is asked, and how its last event tells of an error
LONG: dict[str, dict[str, Any]] = {
    "/v1/completions": {"max_tokens": 250_000},
    "/v1/messages": {"max_tokens": 250_000},
    "/v1/responses": {"max_output_tokens": 250_000},
    "/api/generate": {"options": {"num_predict": 250_000}},
}


def asked(path: str, number: int) -> dict[str, Any]:
    text = f"There were {number} birds"
    told: dict[str, Any] = {"prompt": text}
    if path == "/v1/messages":
        told = {"messages": [{"role": "user", "content": text}]}
    elif path == "/v1/responses":
        told = {"input": text}
    return {"model": DEFAULT, "stream": True} | told | LONG[path]


def conversations(path: str, url: str, replicas: Replicas) -> list[int]:
    """Two that are at home at an address."""
    homes = (
        replicas.order(beginning(json.dumps(asked(path, number)).encode()))[0].url
        for number in itertools.count()
    )
    return list(itertools.islice((n for n, home in enumerate(homes) if home == url), 2))


@pytest.fixture(scope="module")
def endless(endless_model: Path) -> Iterator[Live]:
    """A server whose answers do not end; for tests that end it."""
    with serving(f"{DEFAULT}={endless_model}") as live:
        yield live


def test_a_server_that_is_killed_loses_its_own_streams_only_and_they_end_with_an_error(
    pair: tuple[Live, Live], endless_model: Path
) -> None:
    async def main(front: Live, dying: Live) -> list[tuple[str, list[str]]]:
        begun = 0
        replicas = Replicas([pair[0].url, dying.url], httpx.AsyncClient())
        wanted = [
            (number, path)
            for path in LONG
            for one in replicas.all
            for number in conversations(path, one.url, replicas)
        ]

        async def one(number: int, path: str) -> tuple[str, list[str]]:
            nonlocal begun
            lines = []
            async with client.stream("POST", path, json=asked(path, number)) as stream:
                assert stream.status_code == 200
                async for line in stream.aiter_lines():
                    if not lines:
                        begun += 1
                    if begun == len(wanted):
                        dying.process.kill()
                    lines.append(line)
            return path, [line for line in lines if line]

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=front.url, timeout=PATIENCE_S, trust_env=False, limits=limits
        ) as client:
            ended = await asyncio.gather(*(one(*pair) for pair in wanted))
            for number in range(4):  # and what is asked from now on is answered
                body = ONE | {"prompt": f"There were {number} cats"}
                assert (await client.post("/v1/completions", json=body)).status_code == 200
            while (await client.get("/health")).json()["servers"][dying.url]:
                await asyncio.sleep(0.01)
        return ended

    with serving(f"{DEFAULT}={endless_model}") as dying, fronting(pair[0], dying) as front:
        ended = asyncio.run(main(front, dying))
    lost = [(path, lines) for path, lines in ended if "is gone" in lines[-1]]
    assert Counter(path for path, _ in lost) == dict.fromkeys(LONG, 2)
    for path, lines in lost:
        last = json.loads(lines[-1].removeprefix("data: "))
        if path == "/v1/messages":
            assert (last["type"], last["error"]["type"]) == ("error", "overloaded_error")
        elif path == "/v1/responses":
            assert last["type"] == "error"
            assert last["sequence_number"] == sum(line.startswith("event: ") for line in lines) - 1
        elif path == "/api/generate":
            assert set(last) == {"error"}
        else:
            assert last["error"]["type"] == "service_unavailable_error"
    whole = [lines[-1] for path, lines in ended if "is gone" not in lines[-1]]
    assert len(whole) == 2 * len(LONG)
    ends = ("[DONE]", "message_stop", "response.completed", "response.incomplete", '"done":true')
    assert all(any(end in line for end in ends) for line in whole)


def test_a_front_that_is_stopped_ends_its_streams_with_words_and_exits_with_0(
    endless: Live,
) -> None:
    async def main(front: Live) -> list[str]:
        begun = 0

        async def one(number: int) -> str:
            nonlocal begun
            last = ""
            body = asked("/v1/completions", number)
            async with client.stream("POST", "/v1/completions", json=body) as stream:
                async for line in stream.aiter_lines():
                    if not last:
                        begun += 1
                        if begun == 16:
                            front.process.terminate()
                    last = line or last
            return last

        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=front.url, timeout=PATIENCE_S, trust_env=False, limits=limits
        ) as client:
            return await asyncio.gather(*map(one, range(16)))

    with fronting(endless) as front:
        ended = asyncio.run(main(front))
        assert front.process.wait(PATIENCE_S) == 0
    assert all("shutting down" in json.loads(last[6:])["error"]["message"] for last in ended)


# ---- in this process --------------------------------------------------------------------------


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


def apps(keys: tuple[str, ...] = ()) -> dict[str, FastAPI]:
    """Servers of one place each, by address."""
    engine = EngineOptions(max_sequences=1)
    settings = Settings(models={DEFAULT: DEFAULT}, queue=0, engine=engine, keys=keys)
    return {url: create_app(settings) for url in URLS[:2]}


def front_of(servers: dict[str, FastAPI], **settings: Any) -> Starlette:
    front = create_front(Settings(models={}, **settings), [*servers])
    mounts = {url: httpx.ASGITransport(app) for url, app in servers.items()}
    front.state.service.client = httpx.AsyncClient(mounts=mounts)
    return front


def caller(app: Starlette, **settings: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", **settings)


def test_a_server_without_a_place_is_passed_over() -> None:
    servers = apps()
    queues = [app.state.service.queue for app in servers.values()]

    async def main() -> None:
        async with caller(front_of(servers)) as client:
            for queue in queues:
                with queue.place():
                    assert (await client.post("/v1/completions", json=ONE)).status_code == 200
            with queues[0].place(), queues[1].place():
                full = await client.post("/v1/messages", json={})
            assert full.status_code == 429
            assert int(full.headers["retry-after"]) >= 1
            assert full.json()["error"]["type"] == "rate_limit_error"

    run(main())


def test_conversations_stay_where_their_beginning_is_known() -> None:
    servers = apps()

    def counted() -> list[float | None]:
        name, labels = "trilobit_cached_prompt_tokens_total", {"model": DEFAULT}
        registries = [app.state.service.metrics.registry for app in servers.values()]
        return [registry.get_sample_value(name, labels) for registry in registries]

    async def main() -> None:
        async with caller(front_of(servers)) as client:

            async def cached(messages: list[dict[str, str]]) -> tuple[str, int]:
                body = {"messages": messages, "max_tokens": 3, "temperature": 0}
                done = (await client.post("/v1/chat/completions", json=body)).json()
                details = done["usage"]["prompt_tokens_details"]
                return done["choices"][0]["message"]["content"], details["cached_tokens"]

            for number in itertools.count():  # until both have had one
                first = f"{number} dogs. " + "They ran to the park and saw a cat. " * 6
                messages = [{"role": "user", "content": first}]
                said, _ = await cached(messages)
                again = {"role": "user", "content": "And then?"}
                messages += [{"role": "assistant", "content": said}, again]
                assert (await cached(messages))[1] > 0
                if all(counted()):
                    break

    run(main())


def test_a_front_asks_for_keys_and_passes_them_on() -> None:
    front = front_of(apps(("secret",)), keys=("secret",))

    async def main() -> None:
        async with caller(front) as client:
            for path in ("/v1/models", "/metrics"):
                assert (await client.get(path)).status_code == 401
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/page/main.js")).status_code == 200
        async with caller(front, headers={"x-api-key": "secret"}) as client:
            assert (await client.post("/v1/completions", json=ONE)).status_code == 200
            told = (await client.get("/metrics")).text
        assert 'trilobit_front_requests_total{route="/v1/completions",status="200"} 1.0' in told
        assert 'trilobit_front_running{server="http://a.test"} 0.0' in told

    run(main())


def test_where_nobody_can_be_reached_is_told() -> None:
    front = create_front(Settings(models={}), ["http://127.0.0.1:1"])

    async def main() -> None:
        async with caller(front) as client:
            answer = await client.post("/api/chat", json=ONE)
            assert answer.status_code == 503
            assert answer.json() == {"error": "no server can be reached; ask again later"}
            assert int(answer.headers["retry-after"]) >= 1
            assert (await client.get("/health")).status_code == 503

    run(main())


def test_when_a_server_goes_only_its_own_conversations_move() -> None:
    replicas = Replicas(URLS, httpx.AsyncClient())
    keys = [str(number).encode() for number in range(300)]
    before = {key: replicas.order(key)[0] for key in keys}
    assert {one.url for one in before.values()} == set(URLS)
    gone = replicas.all[1]
    gone.is_alive = False
    for key, one in before.items():
        now = replicas.order(key)
        assert gone not in now
        assert one is gone or now[0] is one


def test_who_has_twice_his_share_comes_last() -> None:
    replicas = Replicas(URLS, httpx.AsyncClient())
    first, *others = replicas.order(b"key")
    first.running = 3
    assert replicas.order(b"key")[0] is first
    first.running = 30
    assert replicas.order(b"key") == [*others, first]
    assert replicas.order(None)[-1] is first


@pytest.mark.parametrize("field", ["messages", "input"])
def test_a_conversation_is_known_by_its_beginning(field: str) -> None:
    system, user = {"role": "system", "content": "A."}, {"role": "user", "content": "B?"}
    more = [{"role": "assistant", "content": "C."}, {"role": "user", "content": "D?"}]

    def key(items: Any, **others: Any) -> bytes | None:
        return beginning(json.dumps({field: items} | others).encode())

    one = key([system, user])
    assert one == key([system, user, *more], temperature=0)
    assert one != key([system, more[1]])
    assert one != key([system, user], model="other")
    assert key("x" * 300) == key("x" * 300 + "y") != key("y" + "x" * 300)
    for nothing in (b"", b"{", b"[1]", b"{}", b"[" * 100_000, b"\xff"):
        assert beginning(nothing) is None
