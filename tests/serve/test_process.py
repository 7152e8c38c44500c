"""A server as a process: what it says, how it ends, several models in it."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from pathlib import Path

import pytest
from live_server import PATIENCE_S, serving

from trilobit.bundled import DEFAULT
from trilobit.engine.options import EngineOptions
from trilobit.serve.errors import ApiError
from trilobit.serve.host import Host
from trilobit.text.grammar import CACHE_BYTES

LONG = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
FEW = {"n": 1, "max_tokens": 100}
SECRET = "a-word-that-nobody-may-log"


def test_sigterm_lets_32_streams_end_and_exits_with_0() -> None:
    ends: list[str] = []

    with serving("--drain-s", str(PATIENCE_S)) as live, live.client() as client:

        def read(begun: threading.Semaphore) -> None:
            text = ""
            with client.stream("POST", "/v1/completions", json=LONG | FEW) as stream:
                for part in stream.iter_text():
                    if not text:
                        begun.release()
                    text += part
            ends.append(text)

        begun = threading.Semaphore(0)
        readers = [threading.Thread(target=read, args=(begun,)) for _ in range(32)]
        for reader in readers:
            reader.start()
        for _ in readers:
            assert begun.acquire(timeout=PATIENCE_S)
        assert live.stop() == 0
        for reader in readers:
            reader.join(PATIENCE_S)
    assert [end.endswith("data: [DONE]\n\n") for end in ends] == [True] * 32


def test_what_was_read_is_not_read_again_after_a_restart(tmp_path: Path) -> None:
    asked = {"prompt": "Once upon a time there was a dog. " * 20, "max_tokens": 30, "seed": 1}
    told = []
    for _ in range(2):
        with serving("--prefix-cache", str(tmp_path / "kept")) as live, live.client() as client:
            told.append(client.post("/v1/completions", json=asked).json())
            assert live.stop() == 0
    first, second = told
    assert first["choices"] == second["choices"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


def test_what_outlasts_the_drain_is_told_so_and_the_exit_is_0_still(endless_model: Path) -> None:
    settings = {"models": {DEFAULT: str(endless_model)}, "drain_s": 0}
    with serving(settings=settings) as live, live.client() as client:
        body = LONG | {"max_tokens": 250_000}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            parts = stream.iter_text()
            text = next(parts)
            live.process.send_signal(signal.SIGTERM)
            text += "".join(parts)
        assert live.process.wait(PATIENCE_S) == 0
    last = text.rstrip().split("\n\n")[-1]
    assert "shutting down" in json.loads(last[6:])["error"]["message"]


def test_json_logs_are_a_line_each_and_never_hold_text() -> None:
    with serving("--json-logs", "--no-page", f"small={DEFAULT}") as live:
        with live.client() as client:
            body = {"prompt": f"{SECRET} one", "max_tokens": 3, "stop": SECRET}
            named = client.post(f"/v1/completions?{SECRET}", json=body).headers["x-request-id"]
            client.post("/v1/completions", json={"prompt": {SECRET: 1}, SECRET: 2})
            client.get(f"/{SECRET}")
        assert live.stop() == 0
        assert live.process.stderr is not None
        err = live.process.stderr.read()
    assert SECRET not in err
    first, *others = map(json.loads, err.splitlines())
    assert first["request"] == named
    assert (first["status"], first["route"]) == (200, "/v1/completions")
    assert (first["models"], first["output_tokens"]) == (["small"], 3)
    assert [other["status"] for other in others] == [400, 404]


def test_models_have_names_are_opened_when_asked_for_and_closed_when_idle(
    model_file: Path,
) -> None:
    names = [f"story={DEFAULT}", str(model_file)]
    with serving(*names, "--idle-unload-s", "0.2") as live, live.client() as client:
        told = client.get("/v1/models").json()["data"]
        assert [one["id"] for one in told] == ["story", model_file.stem]
        for name in ("story", model_file.stem, None):
            body = {"model": name, "prompt": "Once", "max_tokens": 2}
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            assert answer.json()["model"] == name or name is None
        while any(one["loaded"] for one in client.get("/v1/models").json()["data"]):
            pass
        assert client.get("/health").status_code == 200
        again = client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 2})
        assert again.status_code == 200


def test_ctrl_c_ends_a_server_that_has_nothing_to_do_at_once() -> None:
    with serving() as live:
        live.process.send_signal(signal.SIGINT)
        assert live.process.wait(PATIENCE_S) == 0
        assert live.process.stderr is not None
        assert live.process.stderr.read() == ""


def test_memory_is_a_promise() -> None:
    """What is promised is what the whole process has at its peak, under all kinds of load."""
    most_mb = 330
    with serving("--memory", f"{most_mb}M") as live, live.client() as client:
        for body in (
            LONG | {"n": 64, "prompt": "Once upon a time " * 50, "max_tokens": 40},
            {"prompt": ["The dog ran. " * 80] * 3, "echo": True, "logprobs": 20, "max_tokens": 0},
            {"prompt": "x" * 4_000_000},
        ):
            client.post("/v1/completions", json=body)
        client.post("/v1/embeddings", json={"input": ["The cat ran. " * 80] * 16})
        status = Path(f"/proc/{live.process.pid}/status").read_text(encoding="ascii")
    peak_mb = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    assert peak_mb < most_mb * 1.048576


def test_what_cannot_fit_is_refused_at_the_start() -> None:
    refused = pytest.raises(AssertionError, match=r"error: .* no memory is left for it: ")
    with refused, serving("--memory", "60M"):
        pass


def test_a_model_that_nobody_uses_makes_room_for_one_that_is_asked_for(model_file: Path) -> None:
    async def main() -> None:
        first = Host({"a": DEFAULT, "b": str(model_file)}, EngineOptions(kv_memory_mb=1), 1 << 40)
        async with first.llm("a") as a, first.llm("b") as b:
            # Without their grammars, which get a part of what there is.
            both = a.memory_bytes + b.memory_bytes - 2 * CACHE_BYTES
        await first.close()
        own = int(first._own_mb * 1e6)
        host = Host(first.models, first.options, own + both)
        host._own_mb = first._own_mb
        async with host.llm("a"):
            with pytest.raises(ApiError, match="in use: ask again later"):
                async with host.llm("b"):
                    pass
        async with host.llm("b"):
            assert list(host.opened()) == ["b"]
        async with host.llm("a"):
            assert list(host.opened()) == ["a"]
        await host.close()

    asyncio.run(main())
