"""A server as a process: what it says, how it ends, several models in it."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

from live_server import PATIENCE_S, serving

from trilobit.bundled import DEFAULT

LONG = {"prompt": "Once", "max_tokens": 500, "ignore_eos": True, "stream": True, "n": 8}
SECRET = "a-word-that-nobody-may-log"


def test_sigterm_lets_32_streams_end_and_exits_with_0() -> None:
    ends: list[str] = []

    with serving() as live, live.client() as client:

        def read(begun: threading.Semaphore) -> None:
            text = ""
            with client.stream("POST", "/v1/completions", json=LONG | {"n": 1, "max_tokens": 100}) as stream:
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


def test_what_outlasts_the_drain_is_told_so_and_the_exit_is_0_still(model_file: Path) -> None:
    del model_file
    slow = {"max_batch_tokens": 64, "max_sequences": 64}
    settings = {"models": {DEFAULT: DEFAULT}, "drain_s": 0, "engine": slow}
    with serving(settings=settings) as live, live.client() as client:
        body = LONG | {"n": 64}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            parts = stream.iter_text()
            text = next(parts)
            live.process.send_signal(signal.SIGTERM)
            text += "".join(parts)
        assert live.process.wait(PATIENCE_S) == 0
    last = text.rstrip().split("\n\n")[-1]
    assert last == "data: [DONE]" or "shutting down" in json.loads(last[6:])["error"]["message"]


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
        while any("max_model_len" in one for one in client.get("/v1/models").json()["data"]):
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
