"""Anthropic's own SDK against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT

PROMPT = "Once upon a time there was a dog"
MESSAGES = [{"role": "user", "content": PROMPT}]
# The SDK has no such argument any more; programs still send it.
GREEDY: dict[str, Any] = {
    "model": DEFAULT,
    "max_tokens": 20,
    "messages": MESSAGES,
    "extra_body": {"temperature": 0},
}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    # Pings between all that is sent: clients shall not mind them.
    settings = {"models": {DEFAULT: DEFAULT}, "keys": ["secret"], "keep_alive_s": 1e-4}
    with serving(settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=live.url, api_key="secret", timeout=PATIENCE_S, max_retries=0
    ) as made:
        yield made


@pytest.fixture(scope="module")
def text() -> str:
    with LLM() as llm:
        return llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=20)).text


def test_a_message_is_what_the_model_gives_in_process(
    client: anthropic.Anthropic, text: str
) -> None:
    done = client.messages.create(**GREEDY)
    assert [(block.type, block.text) for block in done.content] == [("text", text)]
    assert (done.stop_reason, done.stop_sequence) == ("max_tokens", None)
    assert done.usage.output_tokens == 20
    counted = client.messages.count_tokens(model=DEFAULT, messages=MESSAGES).input_tokens
    assert done.usage.input_tokens + done.usage.cache_read_input_tokens == counted


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic, text: str) -> None:
    kinds = [event.type for event in client.messages.create(stream=True, **GREEDY)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    with client.messages.stream(**GREEDY) as stream:
        assert "".join(stream.text_stream) == text
        done = stream.get_final_message()
    assert done.content[0].text == text
    assert done.stop_reason == "max_tokens"
    assert done.usage.output_tokens == 20


def test_a_quiet_stream_is_kept_alive_by_pings(endless_model: Path) -> None:
    long = {"messages": MESSAGES, "stream": True, "max_tokens": 250_000}
    asked = {"messages": MESSAGES, "stream": True, "max_tokens": 20}
    settings: dict[str, Any] = {
        "models": {DEFAULT: str(endless_model)},
        "keep_alive_s": 0.01,
        "engine": {"max_sequences": 1},
    }
    with (
        serving(settings=settings) as server,
        server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=long) as before,
    ):
        runs = before.iter_lines()  # kept, as it ends the request when it goes
        assert any('"delta":{"content":' in line for line in runs)  # so all others wait
        with client.stream("POST", "/v1/messages", json=asked) as waits:
            lines = waits.iter_lines()
            assert next(lines) == "event: message_start"
            while (line := next(lines)) != "event: ping":
                assert line != "event: message_stop"
            assert next(lines) == 'data: {"type":"ping"}'
            before.close()
            assert "event: message_stop" in lines


def test_a_stop_sequence_ends_a_message_and_is_named(
    client: anthropic.Anthropic, text: str
) -> None:
    stop = text.split()[3]
    done = client.messages.create(stop_sequences=["never said", stop], **GREEDY)
    assert (done.stop_reason, done.stop_sequence) == ("stop_sequence", stop)
    assert done.content[0].text == text[: text.index(stop)]
    with client.messages.stream(stop_sequences=[stop], **GREEDY) as stream:
        assert stream.get_final_message().stop_sequence == stop


def test_blocks_of_text_are_what_the_text_is(client: anthropic.Anthropic, text: str) -> None:
    first, second = PROMPT[:11], PROMPT[12:]

    def read(**asked: Any) -> str:
        return client.messages.create(**GREEDY | asked).content[0].text

    joined = read(messages=[{"role": "user", "content": f"{first}\n{second}"}])
    block = {"type": "text", "text": first, "cache_control": {"type": "ephemeral"}}
    two = [block, {"type": "text", "text": second}]
    assert read(messages=[{"role": "user", "content": two}]) == joined
    turns = [{"role": "user", "content": first}, {"role": "user", "content": second}]
    assert read(messages=turns) == joined
    assert read(system=[block], messages=turns[1:]) == read(system=first, messages=turns[1:])
    harmless = {
        "metadata": {"user_id": "x"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "low"},
        "extra_headers": {"anthropic-beta": "something-2026-01-01"},
        "tools": [],
        "tool_choice": {"type": "auto"},
    }
    assert read(**harmless) == text


def test_a_changing_billing_header_leaves_the_prefix_cache_useful(
    client: anthropic.Anthropic,
) -> None:
    def ask(number: int) -> anthropic.types.Message:
        line = f"x-anthropic-billing-header: cc_version=2.1; cch={number};"
        rest = "The dog went to the park and saw a cat. " * 12
        blocks = [{"type": "text", "text": line}, {"type": "text", "text": rest}]
        return client.messages.create(system=blocks, **GREEDY)

    first, second = ask(11111), ask(22222)
    assert second.content == first.content
    assert second.usage.cache_read_input_tokens > 64
    counted = [
        client.messages.count_tokens(model=DEFAULT, messages=MESSAGES, system=system).input_tokens
        for system in ("x-anthropic-billing-header: cch=1;\nA story.", "A story.")
    ]
    assert counted[0] == counted[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "document"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "He"}]}, "assistant"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"extra_body": {"temperature": -1}}, "temperature"),
        ({"extra_body": {"mcp_servers": []}}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": "dog " * 2000}]}, "context"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: anthropic.Anthropic, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words) as caught:
        client.messages.create(**GREEDY | changed)
    assert caught.value.body["type"] == "error"  # type: ignore[index]
    assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


def test_other_refusals_have_the_shape_too(live: Live, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match=DEFAULT):
        client.messages.create(**GREEDY | {"model": "claude-9"})
    with pytest.raises(anthropic.AuthenticationError) as caught:
        client.with_options(api_key="wrong").messages.create(**GREEDY)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    with live.client(headers={"x-api-key": "secret"}) as bare:
        missing = bare.post("/v1/messages", json={"messages": MESSAGES})
        assert missing.status_code == 400
        assert "max_tokens" in missing.json()["error"]["message"]


def test_an_error_on_the_way_ends_a_stream_in_its_shape() -> None:
    slow = {"models": {DEFAULT: DEFAULT}, "request_s": 1e-9}
    with (
        serving(settings=slow) as server,
        anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError, match="took longer") as caught,
    ):
        list(client.messages.create(stream=True, **GREEDY | {"max_tokens": 400}))
    assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
