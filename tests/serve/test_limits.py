"""What bounds a request: sizes, times, places. Nothing a client sends is an error of the server."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from live_server import PATIENCE_S, Live, serving
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from trilobit import AsyncLLM
from trilobit.bundled import DEFAULT
from trilobit.engine.batch import Batch
from trilobit.engine.options import EngineOptions
from trilobit.machine import peak_rss_mb
from trilobit.serve.app import create_app
from trilobit.serve.connection import Connection
from trilobit.serve.errors import ApiError, response_of
from trilobit.serve.settings import Settings
from trilobit.serve.sse import Events
from trilobit.text.stops import StopStrings

PROMPT = "Once upon a time"
LONG = {"prompt": PROMPT, "temperature": 0, "max_tokens": 400, "ignore_eos": True}
ENDLESS = LONG | {"max_tokens": 250_000}  # of the model that does not end
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
SECRET = "a-word-that-nobody-may-log"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    limits = {"body_bytes": 20_000, "sender_s": PATIENCE_S, "reader_s": PATIENCE_S, "choices": 8}
    with serving(settings={"models": {DEFAULT: DEFAULT}, **limits}) as server:
        yield server


@pytest.fixture(scope="module")
def impatient() -> Iterator[Live]:
    """Not for those who are to be in time."""
    limits = {"sender_s": 0.5, "reader_s": 0.5}
    with serving(settings={"models": {DEFAULT: DEFAULT}, **limits}) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with live.client() as made:
        yield made


# ---- on the wire ------------------------------------------------------------------------------


def said(live: Live, sent: bytes) -> str:
    """All that comes until the other side closes, which may be before it has read all."""
    parts = []
    with live.socket() as sock:
        with suppress(ConnectionError):
            sock.sendall(sent)
        with suppress(ConnectionError):
            while part := sock.recv(65536):
                parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/completions HT",
        POST,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal",
        POST + b"Content-Length: 9\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
)
def test_a_slow_sender_is_told_and_let_go(impatient: Live, sent: bytes) -> None:
    assert "HTTP/1.1 408" in said(impatient, sent)


def test_a_reader_who_takes_nothing_is_let_go(impatient: Live) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = httpx.URL(impatient.url)
        sock.connect((address.host, address.port))
        sock.settimeout(PATIENCE_S)
        one = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.sendall(one * 1_000_000)
    assert impatient.process.poll() is None


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"x: y\r\n" * 20_000,
        b"GET /health HTTP/1.1\r\nContent-Length: -1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_a_400_of_the_apis_shape(live: Live, sent: bytes) -> None:
    head, _, body = said(live, sent).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 400")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_413_however_it_is_sent(live: Live) -> None:
    claimed = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
    )
    assert "HTTP/1.1 413" in said(live, claimed)  # refused before it comes
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert "HTTP/1.1 413" in said(live, chunked + b"5001\r\n" + b"x" * 0x5001 + b"\r\n")


# ---- what a body may say ----------------------------------------------------------------------

_DEEP = '{"messages":' + "[" * 4000 + "]" * 4000 + "}"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", "{", 400, None),
        ("/v1/completions", "[]", 400, None),
        ("/v1/completions", "null", 400, None),
        ("/v1/completions", '"x"', 400, None),
        ("/v1/completions", "{}", 400, "prompt"),
        ("/v1/completions", _DEEP, 400, None),
        ("/v1/completions", '{"prompt": 1e999}', 400, "prompt"),
        ("/v1/completions", '{"prompt": ' + "9" * 5000 + "}", 400, None),
        ("/v1/completions", "\udcff", 400, None),
        ("/v1/chat/completions", _DEEP, 400, None),
        ("/v1/chat/completions", '{"messages": []}', 400, "messages"),
        ("/v1/chat/completions", '{"messages": [{"role": "user"}]}', 400, None),
        ("/v1/embeddings", '{"input": []}', 400, None),
        ("/v1/embeddings", '{"input": [1, 2]}', 400, "input"),
        ("/v1/embeddings", '{"input": "x", "dimensions": 100000}', 400, None),
        ("/tokenize", "{}", 400, None),
        ("/tokenize", '{"prompt": "a", "content": "b"}', 400, None),
        ("/detokenize", '{"tokens": [-1]}', 400, None),
        ("/detokenize", '{"tokens": [1e3]}', 400, "tokens"),
        ("/apply-template", '{"messages": [{"role": 1, "content": ""}]}', 400, None),
        ("/nowhere", "{}", 404, None),
        ("/health", "{}", 405, None),
    ],
)
def test_a_body_that_is_wrong_is_told_in_the_apis_shape(
    client: httpx.Client, path: str, body: str, status: int, param: str | None
) -> None:
    answer = client.post(
        path,
        content=body.encode("utf-8", "surrogateescape"),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 1000
    if param is not None:
        assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"[" * 20_000, "the body is not JSON"),  # how deep is too deep depends on Python
        (b"9" * 5000, "the body is not JSON that can be read: a number has too many digits"),
        (b"\xff", "the body is not JSON: it is no UTF-8 text"),
        (b"{", "the body is not JSON"),
    ],
    ids=["deep", "long", "bytes", "cut"],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/api/chat"])
def test_a_body_that_cannot_be_read_is_told_why(
    client: httpx.Client, path: str, body: bytes, told: str
) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error if isinstance(error, str) else error["message"]).startswith(told)


_CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "tool", "tool_call_id": "c2", "content": "x"}, "messages.1.tool_call_id"),
        ({"role": "tool", "content": "x"}, "messages.1.tool_call_id"),
        ({"role": "tool", "tool_call_id": "c1", "content": None}, "messages.1.content"),
        ({"role": "x", "content": "x"}, "messages.1.role"),
        ({"role": ["user"], "content": "x"}, "messages.1.role"),
        ({"role": "user", "content": None}, "messages.1.content"),
        ({"role": "developer"}, "messages.1.content"),
    ],
)
def test_a_message_that_is_none_of_openais_is_refused_by_its_field(
    client: httpx.Client, message: dict[str, Any], field: str
) -> None:
    body = {"messages": [_CALLED, message], "max_tokens": 1}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: ")


def test_a_result_stands_behind_its_call(client: httpx.Client) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    for messages, status in [([_CALLED, result], 200), ([result, _CALLED], 400)]:
        body = {"messages": messages, "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == status


def test_two_names_of_one_limit_say_the_same(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": 1}
    assert client.post("/v1/chat/completions", json=body | {"max_tokens": 1}).status_code == 200
    answer = client.post("/v1/chat/completions", json=body | {"max_tokens": 2})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    "field",
    [
        {"n": 0},
        {"n": 9},
        {"n": "2"},
        {"n": True},
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": 2},
        {"top_k": -2},
        {"max_tokens": -1},
        {"max_tokens": 1 << 40},
        {"seed": 1 << 70},
        {"stop": ["x"] * 300},
        {"stop": [""]},
        {"stop": ""},
        {"stop": 3},
        {"logit_bias": {"x": 1}},
        {"logit_bias": {"99999999": 1}},
        {"logit_bias": {"9" * 5000: 1}},
        {"logit_bias": {"1": 1e40}},
        {"stop_token_ids": [1 << 40]},
        {"logprobs": 1000},
        {"best_of": 7},
        {"suffix": "end"},
        {"prompt": [PROMPT] * 9},
        {"prompt": [[]]},
        {"prompt": []},
        {"prompt": [99999999]},
        {"prompt": [-1]},
        {"model": 5},
        {"stream_options": {"bogus": 1}},
        {"chat_template": "{{ 7 * 7 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}},
        {"guided_nonsense": 1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_a_field_that_is_out_of_range_or_unknown_is_a_400(
    client: httpx.Client, field: dict[str, Any]
) -> None:
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1} | field)
    answer = client.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    words = answer.json()["error"]["message"]
    assert next(iter(field)).split("_")[0] in words or "token id" in words


@pytest.mark.parametrize(
    "field",
    [
        {"chat_template": "{{ 7 * 7 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}},
        {"template": "{{ 7 * 7 }}"},
        {"documents": []},
    ],
    ids=lambda field: next(iter(field)),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template", "/tokenize"])
def test_a_template_is_never_taken_from_a_request(
    client: httpx.Client, path: str, field: dict[str, Any]
) -> None:
    body = {"messages": [{"role": "user", "content": "{{ 7 * 7 }}"}]}
    answer = client.post(path, json=body | field)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(field))
    assert "49" not in client.post("/apply-template", json=body).text


def test_an_unknown_field_is_refused_by_name_and_a_harmless_one_taken(
    client: httpx.Client,
) -> None:
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
    refused = client.post("/v1/chat/completions", json=body | {"telepathy": True})
    assert refused.json()["error"]["param"] == "telepathy"
    harmless = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    empty = {"logit_bias": None, "stop": None, "seed": None, "telepathy": None}
    assert client.post("/v1/chat/completions", json=body | harmless | empty).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", r'{"prompt": "\ud800", "echo": true, "max_tokens": 1}'),
        ("/v1/completions", r'{"prompt": "\ud800", "echo": true, "max_tokens": 1, "stream": true}'),
        ("/apply-template", r'{"messages": [{"role": "user", "content": "\ud800"}]}'),
        ("/v1/completions", r'{"prompt": "a", "model": "\ud800"}'),
        ("/v1/completions", r'{"prompt": "a", "\ud800": 1}'),
        ("/v1/embeddings", r'{"input": "\ud800"}'),
    ],
)
def test_half_a_character_is_no_fault_of_the_server(
    client: httpx.Client, path: str, body: str
) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404)
    assert answer.content.decode("utf-8")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_a_body_that_is_called_something_else_is_415(client: httpx.Client, kind: str) -> None:
    body = json.dumps({"prompt": PROMPT})
    answer = client.post("/v1/completions", content=body, headers={"content-type": kind})
    assert answer.status_code == 415


def test_pictures_are_refused_and_never_fetched(client: httpx.Client) -> None:
    with socket.socket() as trap:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/picture.png"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        answer = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}
        )
        assert answer.status_code == 400
        with pytest.raises(BlockingIOError):
            trap.accept()


# ---- in this process, step by step ------------------------------------------------------------


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


def app_of(model: str | Path = DEFAULT, **settings: Any) -> FastAPI:
    return create_app(Settings(models={DEFAULT: str(model)}, **settings))


def caller(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def opened(app: FastAPI) -> AsyncLLM:
    async with app.state.service.host.llm(None) as llm:
        return llm


async def idle(llm: AsyncLLM) -> None:
    while llm.engine.has_work:
        await asyncio.sleep(0.001)


def test_who_finds_no_place_is_told_when_to_come_again() -> None:
    app = app_of(queue=1, engine=EngineOptions(max_sequences=1))

    async def main() -> None:
        async with caller(app) as client:
            with app.state.service.queue.place():
                assert (await client.post("/v1/completions", json=LONG)).status_code == 200
                both = await client.post("/v1/completions", json=LONG | {"n": 2})
                assert both.status_code == 429
                assert int(both.headers["retry-after"]) >= 1
                assert both.json()["error"]["type"] == "rate_limit_error"
            never = await client.post("/v1/completions", json=LONG | {"n": 3})
            assert never.status_code == 400
            assert (await client.post("/v1/completions", json=LONG | {"n": 2})).status_code == 200
        assert app.state.service.queue.taken == 0

    run(main())


async def unread() -> dict[str, Any]:
    raise AssertionError("the body is read")


async def status_of(app: FastAPI, path: str, receive: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of what is answered to a POST."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)
    told = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], told, json.loads(b"".join(one["body"] for one in sent[1:]))


SHAPES = {
    "/v1/messages": lambda told: told["error"]["type"] == "rate_limit_error" and told["type"],
    "/api/chat": lambda told: isinstance(told["error"], str),
    "/v1/responses": lambda told: told["error"]["code"] == "queue_full",
}


def test_all_that_takes_places_is_refused_before_its_body_is_read() -> None:
    app = app_of(queue=0, engine=EngineOptions(max_sequences=1))
    paths = [
        path
        for path, methods in app.openapi()["paths"].items()
        if "post" in methods and path not in ("/tokenize", "/detokenize", "/apply-template")
    ]
    others = {"/v1/messages/count_tokens", "/api/show"}

    async def main() -> None:
        with app.state.service.queue.place():
            for path in sorted({*paths} - others):
                status, headers, told = await status_of(app, path, unread)
                assert status == 429, path
                assert int(headers["retry-after"]) >= 1
                assert SHAPES.get(path, lambda told: told["error"])(told), path
            async with caller(app) as client:
                for path in others:
                    assert (await client.post(path, json={})).status_code == 400
                counted = (await client.get("/metrics")).text
                wrong = await client.post("/v1/completions/", json={})
        assert 'trilobit_requests_total{route="/v1/completions",status="429"} 1.0' in counted
        assert wrong.status_code != 429

    assert others < {*paths}
    run(main())


def test_those_whom_a_crowd_leaves_no_place_are_told_before_anybody_is_answered() -> None:
    app = app_of(queue=4, engine=EngineOptions(max_sequences=4))
    ended: list[int] = []

    async def ask() -> None:
        body = json.dumps({"prompt": PROMPT, "max_tokens": 1}).encode()

        async def receive() -> dict[str, Any]:
            if body not in seen:
                seen.append(body)
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        seen: list[bytes] = []
        ended.append((await status_of(app, "/v1/completions", receive))[0])

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(32)))
        assert ended == [429] * 24 + [200] * 8
        assert app.state.service.queue.taken == 0

    run(main())


def test_who_sends_slowly_keeps_no_place() -> None:
    app = app_of(queue=0, engine=EngineOptions(max_sequences=1))
    parts: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": await parts.get(), "more_body": True}

    async def main() -> None:
        slow = asyncio.ensure_future(status_of(app, "/v1/completions", receive))
        await parts.put(b"{")
        while not parts.empty():
            await asyncio.sleep(0)
        async with caller(app) as client:
            body = {"prompt": PROMPT, "max_tokens": 1}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
        slow.cancel()

    run(main())


@pytest.mark.parametrize("comes", [True, False])
def test_a_connection_that_was_refused_is_kept_if_the_rest_of_its_body_comes(comes: bool) -> None:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await response_of(ApiError(429, "no place"), scope["path"])(scope, receive, send)

    async def main() -> None:
        config = uvicorn.Config(refusing)
        config.load()
        limits = {"header_s": PATIENCE_S, "reader_s": PATIENCE_S, "most": 9}
        made: list[Connection] = []

        def make() -> Connection:
            made.append(Connection(config, ServerState(), {}, **limits))
            return made[-1]

        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not made or made[0]._deadline is None:  # of the header
            await asyncio.sleep(0.001)
        if not comes:
            made[0]._header_s = 0.0  # no patience with the rest, which has a header's time
        writer.write(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 10)
        assert (await reader.readuntil(b"no place")).startswith(b"HTTP/1.1 429")
        if comes:
            assert made[0]._deadline is not None  # for the rest
            writer.write(b"x" * 99_990)
            while made[0]._deadline is not None:
                await asyncio.sleep(0.001)
            writer.write(POST + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
            assert b"HTTP/1.1 429" in await reader.read()
        else:
            assert b"HTTP" not in await reader.read()  # it is cut
        writer.close()
        server.close()

    run(main())


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_who_leaves_frees_his_blocks_within_a_step(
    streams: bool, endless_model: Path
) -> None:
    app = app_of(endless_model)

    async def main() -> None:
        llm = await opened(app)
        gone = asyncio.Event()
        body = [json.dumps(ENDLESS | {"stream": streams, "n": 8}).encode()]

        async def receive() -> dict[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message.get("body"):
                gone.set()

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        answering = asyncio.ensure_future(app(scope, receive, send))
        while not llm.engine.scheduler.running:
            await asyncio.sleep(0)
        if not streams:
            gone.set()
        await answering
        steps = llm.engine.steps
        await idle(llm)
        assert llm.engine.steps <= steps + 1
        assert llm.engine.free_blocks == llm.engine.backend.blocks
        assert app.state.service.queue.taken == 0

    run(main())


def test_an_answer_that_takes_too_long_ends_with_words(endless_model: Path) -> None:
    app = app_of(endless_model, request_s=1e-9)

    async def main() -> None:
        async with caller(app) as client:
            whole = await client.post("/v1/completions", json=ENDLESS)
            assert whole.status_code == 503
            assert "took longer" in whole.text
            part = await client.post("/v1/completions", json=ENDLESS | {"stream": True})
            *_, last, end = part.text.split("\n\n")
            assert "took longer" in json.loads(last.removeprefix("data: "))["error"]["message"]
            assert end == ""

    run(main())


def test_a_quiet_stream_is_kept_alive_by_comments() -> None:
    heard = asyncio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        await heard.wait()
        yield b"data: 1\n\n"

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))
        if sent[-1].startswith(b": "):
            heard.set()

    sent: list[bytes] = []
    scope = {"type": "http", "path": "/"}
    run(Events(parts(), keep_alive_s=0.01)(scope, None, send))  # type: ignore[arg-type]
    assert b"".join(sent).startswith(b": ")
    assert sent[-2:] == [b"data: 1\n\n", b""]


def test_an_error_on_the_way_is_the_last_event() -> None:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise ApiError(503, "the end")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    sent: list[bytes] = []
    run(Events(parts(), keep_alive_s=9)({"type": "http", "path": "/"}, None, send))  # type: ignore[arg-type]
    assert json.loads(sent[2].removeprefix(b"data: "))["error"]["message"] == "the end"


def test_our_own_faults_are_500_without_words_and_leave_no_text_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of()

    def broken(*_: object) -> None:
        raise TypeError(f"found {SECRET}")

    async def main() -> httpx.Response:
        llm = await opened(app)
        monkeypatch.setattr(llm, "ids", broken)
        async with caller(app) as client:
            return await client.post("/v1/completions", json={"prompt": SECRET})

    with caplog.at_level(logging.DEBUG):
        answer = run(main())
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert SECRET not in caplog.text
    assert "TypeError in test_limits.py" in caplog.text


def test_a_greedy_text_is_the_same_alone_and_among_63_others() -> None:
    """Neighbours of every kind, who come and go at random, in a cache that is too small for all."""
    one = EngineOptions(max_sequences=64, kv_memory_mb=24)
    app = app_of(engine=one)
    rng = random.Random(5)
    own = [{"prompt": f"There were {n} birds", "temperature": 0, "max_tokens": 60} for n in (2, 7)]

    def neighbour(number: int) -> dict[str, Any]:
        kinds: list[dict[str, Any]] = [
            {"temperature": 2.0, "seed": number},
            {"logit_bias": {str(i): -100 for i in range(50)}},
            {"stop": ["the", f"w{number}"], "frequency_penalty": 1.5},
            {"logprobs": 3, "echo": True},
            {"n": 2, "top_k": 5, "repetition_penalty": 1.3},
            {"cache_salt": f"salt {number}", "min_p": 0.1},
        ]
        body = {"prompt": f"There were {number} birds", "max_tokens": rng.randint(1, 90)}
        return body | rng.choice(kinds) | {"stream": rng.random() < 0.5}

    async def main() -> None:
        async with caller(app) as client:

            async def text(body: dict[str, Any]) -> str:
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200
                return str(answer.json()["choices"][0]["text"])

            alone = [await text(body) for body in own]
            others = [
                asyncio.ensure_future(client.post("/v1/completions", json=neighbour(number)))
                for number in range(63)
            ]
            asked = [asyncio.ensure_future(text(body)) for body in own]
            for other in others[::3]:
                await asyncio.sleep(rng.random() * 0.02)
                other.cancel()
            assert await asyncio.gather(*asked) == alone
            ended = await asyncio.gather(*others, return_exceptions=True)
            assert {one.status_code for one in ended if isinstance(one, httpx.Response)} == {200}
            llm = await opened(app)
            await idle(llm)
            assert llm.engine.free_blocks == llm.engine.backend.blocks

    run(main())


def test_only_requests_of_one_salt_share_a_cache() -> None:
    app = app_of()
    prompt = "The dog ran to the park and saw a cat. " * 10

    async def main() -> None:
        async with caller(app) as client:

            async def cached(salt: str | None) -> int:
                body = {"prompt": prompt, "max_tokens": 1, "cache_salt": salt}
                usage = (await client.post("/v1/completions", json=body)).json()["usage"]
                return int(usage["prompt_tokens_details"]["cached_tokens"])

            assert await cached(None) == 0
            assert await cached(None) > 0
            assert await cached("mine") == 0
            assert await cached("yours") == 0
            assert await cached("mine") > 0
            assert await cached("") > 0  # as without

    run(main())


def test_health_fails_while_decoding_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(health_s=0.05)
    stuck = threading.Event()

    async def main() -> None:
        llm = await opened(app)
        backend = llm.engine.backend
        forward = backend.forward

        def late(batch: Batch) -> None:
            stuck.wait(PATIENCE_S)
            forward(batch)

        monkeypatch.setattr(backend, "forward", late)
        async with caller(app) as client:
            asked = asyncio.ensure_future(client.post("/v1/completions", json=LONG))
            while (told := await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.01)
            assert told.status_code == 503
            assert "no token within 0.05 s" in told.json()["error"]["message"]
            stuck.set()
            assert (await asked).status_code == 200
            assert (await client.get("/health")).status_code == 200

    run(main())


def test_an_engine_that_was_killed_fails_health_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, endless_model: Path
) -> None:
    app = app_of(endless_model)

    async def main() -> None:
        llm = await opened(app)
        forward, running = llm.engine.backend.forward, llm.engine.scheduler.running

        def killed(batch: Batch) -> None:
            if len(running) == 5 and all(one.output_tokens > 20 for one in running):
                raise SystemExit
            forward(batch)

        monkeypatch.setattr(llm.engine.backend, "forward", killed)
        async with caller(app) as client:
            asked = [client.post("/v1/completions", json=ENDLESS) for _ in range(4)]
            streamed = client.post("/v1/completions", json=ENDLESS | {"stream": True})
            *answers, stream = await asyncio.gather(*asked, streamed)
            told = [await client.get("/health"), await client.post("/v1/completions", json=LONG)]
            for one in [*answers, *told]:
                assert one.status_code == 503
                assert "was killed (SystemExit)" in one.json()["error"]["message"]
            assert "was killed (SystemExit)" in stream.text.splitlines()[-2]
            assert (await client.get("/metrics")).status_code == 200
        assert app.state.service.queue.taken == 0

    run(main())
    [line] = [one for one in caplog.messages if "killed" in one]
    assert line.startswith("the thread that runs the model was killed")


def test_a_model_is_not_closed_under_who_uses_it() -> None:
    app = app_of(idle_unload_s=1e-4)

    async def main() -> None:
        async with app.state.service.running(), caller(app) as client:
            for _ in range(6):
                asked = [
                    client.post("/tokenize", json={"content": PROMPT * 50}),
                    client.post("/v1/completions", json=LONG | {"max_tokens": 30}),
                    client.post("/v1/embeddings", json={"input": PROMPT}),
                ]
                answers = await asyncio.gather(*asked)
                assert [answer.status_code for answer in answers] == [200, 200, 200]
                await asyncio.sleep(0.001)

    run(main())


def test_a_hundred_thousand_distinct_stop_sets_leave_nothing_behind() -> None:
    def make(numbers: range) -> None:
        for number in numbers:
            StopStrings((f"stop {number}", f"{number} end")).add(f"a stop {number}")

    make(range(1000))
    before = peak_rss_mb()
    make(range(1000, 101_000))
    assert peak_rss_mb() - before < 5
