"""Ollama's own Python client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from live_server import PATIENCE_S, Live, serving, with_template

from trilobit import LLM, Embedder, SamplingParams
from trilobit.bundled import DEFAULT

PROMPT = "Once upon a time there was a dog"
MESSAGES = [{"role": "user", "content": PROMPT}]
OPTIONS = {"temperature": 0, "num_predict": 20, "num_ctx": 8192, "num_thread": 4}
CHAT: dict[str, Any] = {"model": DEFAULT, "messages": MESSAGES, "options": OPTIONS}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    # Signs of life between all that is sent: clients shall not mind them.
    with serving(settings={"models": {DEFAULT: DEFAULT}, "keep_alive_s": 1e-4}) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[ollama.Client]:
    with ollama.Client(live.url, timeout=PATIENCE_S, trust_env=False) as made:
        yield made


@pytest.fixture(scope="module")
def text() -> str:
    with LLM() as llm:
        return llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=20)).text


def test_a_chat_is_what_the_model_gives_in_process(client: ollama.Client, text: str) -> None:
    done = client.chat(keep_alive="1h30m", think=False, **CHAT)
    assert (done.message.role, done.message.content) == ("assistant", text)
    assert (done.done, done.done_reason, done.eval_count) == (True, "length", 20)
    assert done.prompt_eval_count
    times = [done.load_duration, done.prompt_eval_duration, done.eval_duration]
    assert all(isinstance(one, int) and one >= 0 for one in times)
    assert sum(one or 0 for one in times) == done.total_duration


def test_a_streamed_chat_adds_up_to_the_whole_one(client: ollama.Client, text: str) -> None:
    parts = list(client.chat(stream=True, **CHAT))
    assert "".join(part.message.content or "" for part in parts) == text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 20)


def test_a_generated_text_is_what_the_model_gives(client: ollama.Client, text: str) -> None:
    asked: dict[str, Any] = {"model": f"{DEFAULT}:latest", "prompt": PROMPT, "options": OPTIONS}
    assert client.generate(raw=True, **asked).response == text  # this model has no template
    assert "".join(part.response or "" for part in client.generate(stream=True, **asked)) == text
    assert client.generate(system="A story.", **asked).response != text
    stop = text.split()[3]
    stopped = client.generate(**asked | {"options": OPTIONS | {"stop": [stop]}})
    assert (stopped.response, stopped.done_reason) == (text[: text.index(stop)], "stop")
    assert client.generate(model=DEFAULT).done_reason == "load"


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_body_streams_by_default_and_needs_no_content_type(
    live: Live, text: str, headers: dict[str, str]
) -> None:
    with live.client(headers=headers) as bare:
        answer = bare.post("/api/chat", content=json.dumps(CHAT))
        refused = bare.post("/api/chat", content=json.dumps(CHAT | {"format": "xml"}))
        foreign = bare.post(
            "/api/chat", content=json.dumps(CHAT), headers={"origin": "https://evil.example"}
        )
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == text
    assert (refused.status_code, list(refused.json())) == (400, ["error"])
    told = "format: 'xml' is no form of an answer; expected 'json' or a JSON schema"
    assert refused.json()["error"] == told
    assert foreign.status_code == 403


def test_a_quiet_stream_gives_signs_of_life(endless_model: Path) -> None:
    settings: dict[str, Any] = {
        "models": {DEFAULT: str(endless_model)},
        "keep_alive_s": 0.01,
        "engine": {"max_sequences": 1},
    }
    long = {"prompt": PROMPT, "stream": True, "max_tokens": 250_000}
    asked = CHAT | {"options": {"num_predict": 20}}
    with (
        serving(settings=settings) as server,
        server.client() as client,
        client.stream("POST", "/v1/completions", json=long) as before,
    ):
        runs = before.iter_lines()  # kept, as it ends the request when it goes
        assert any(line.startswith("data: ") for line in runs)  # so all others wait
        with client.stream("POST", "/api/chat", json=asked) as waits:
            lines = map(json.loads, waits.iter_lines())
            sign = next(lines)
            assert (sign["message"]["content"], sign["done"]) == ("", False)
            before.close()
            *parts, last = lines
    assert "".join(part["message"]["content"] for part in parts)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 20)


# ---- tools and forms ----------------------------------------------------------------------------

CLOSED = {"type": "object", "additionalProperties": False}
GO = CLOSED | {"properties": {"where": {"enum": ["park", "home"]}}, "required": ["where"]}
TOOLS: Any = [{"type": "function", "function": {"name": "go", "parameters": GO}}]
# As Llama's templates: an answer that is an object of these two is a call.
CALLS = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}{# tools parameters #}"
A_CALL = CLOSED | {
    "properties": {"name": {"const": "go"}, "parameters": GO},
    "required": ["name", "parameters"],
}


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Client]:
    """A model that calls: it is held to that by the form of its answer."""
    path = with_template(tmp_path_factory.mktemp("calling"), CALLS)
    with (
        serving(settings={"models": {DEFAULT: path}}) as server,
        ollama.Client(server.url, timeout=PATIENCE_S, trust_env=False) as made,
    ):
        yield made


def test_a_model_that_calls_is_heard_whole_and_streamed(calling: ollama.Client) -> None:
    asked = CHAT | {"tools": TOOLS, "format": A_CALL, "options": {"temperature": 0}}
    done = calling.chat(**asked)
    assert (done.message.content, done.done_reason) == ("", "stop")
    [call] = done.message.tool_calls or []
    assert call.function.name == "go"
    assert call.function.arguments["where"] in ("park", "home")
    parts = list(calling.chat(stream=True, **asked))
    assert [one.function for part in parts for one in part.message.tool_calls or []] == [
        call.function
    ]
    assert not any(part.message.content for part in parts)
    # Who offers no tool gets the text.
    plain = calling.chat(**asked | {"tools": []})
    assert json.loads(plain.message.content or "")["name"] == "go"
    assert plain.message.tool_calls is None


def test_calls_and_what_they_return_go_back_to_the_model(client: ollama.Client) -> None:
    asked = CHAT | {"tools": TOOLS}
    called = {"function": {"name": "go", "arguments": {"where": "park"}}}
    history = [
        *MESSAGES,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_name": "go", "content": "There is a dog."},
    ]
    before = client.chat(**asked).prompt_eval_count or 0
    after = client.chat(**asked | {"messages": history})
    assert after.eval_count
    assert (after.prompt_eval_count or 0) > before + 20


def test_an_answer_has_the_form_that_is_asked_for(client: ollama.Client) -> None:
    options = {"temperature": 0}
    done = client.chat(**CHAT | {"format": GO, "options": options})
    assert json.loads(done.message.content or "")["where"] in ("park", "home")
    made = client.generate(DEFAULT, PROMPT, format=GO, options=options)
    assert json.loads(made.response)["where"] in ("park", "home")
    parts = client.chat(stream=True, **CHAT | {"format": "json", "options": {"num_predict": 8}})
    assert "".join(part.message.content or "" for part in parts).startswith("{")


def test_models_are_told(live: Live, client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == [DEFAULT]
    [running] = client.ps().models
    assert (running.model, running.context_length) == (DEFAULT, 512)
    told = client.show(DEFAULT)
    assert told.capabilities == ["completion", "tools"]
    assert told.modelinfo is not None
    assert told.modelinfo["bitnet.context_length"] == 512
    with live.client() as bare:
        assert "version" in bare.get("/api/version").json()


def test_vectors_are_those_of_the_embedder(client: ollama.Client) -> None:
    texts = ["a dog", "a cat in a tree"]
    with Embedder(DEFAULT) as embedder:
        wanted = embedder.encode(texts)
        tokens = embedder.count_tokens(texts)
    told = client.embed(DEFAULT, texts)
    assert np.array_equal(np.array(told.embeddings, np.float32), wanted)
    assert told.prompt_eval_count == tokens


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"messages": [MESSAGES[0] | {"images": [b"abc"]}]}, "images"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"think": True}, "think"),
        ({"keep_alive": "bad"}, "keep_alive: 'bad' is no time"),
        ({"keep_alive": "5"}, "keep_alive"),
        ({"options": {"mirostat": 2}}, "mirostat"),
        ({"options": {"num_predict": 5, "temperature": -1}}, "temperature"),
        ({"options": {"typical_p": 0.5}}, "typical_p"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: ollama.Client, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        client.chat(**CHAT | changed)
    assert caught.value.status_code == 400


def test_an_unknown_model_is_not_found(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=DEFAULT) as caught:
        client.chat(**CHAT | {"model": "llama3.2"})
    assert caught.value.status_code == 404


def test_an_error_on_the_way_ends_a_stream_in_its_shape(endless_model: Path) -> None:
    settings = {"models": {DEFAULT: str(endless_model)}, "request_s": 1e-9}
    with (
        serving(settings=settings) as server,
        ollama.Client(server.url, timeout=PATIENCE_S, trust_env=False) as client,
        pytest.raises(ollama.ResponseError, match="took longer"),
    ):
        list(client.chat(stream=True, **CHAT | {"options": {"num_predict": 250_000}}))
