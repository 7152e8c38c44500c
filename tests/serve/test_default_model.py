"""Which model is meant where a request names none: the first, for a chat the first that chats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Live, serving

from trilobit.bundled import CHAT, DEFAULT
from trilobit.serve.purpose import purpose_of

MESSAGES = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    live: Live
    with serving() as live, live.client() as client:
        yield client


def _answer(client: httpx.Client, route: str, **body: Any) -> dict[str, Any]:
    answer = client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}),
        ("/v1/responses", {"input": "Hello!", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 1}),
    ],
)
def test_a_chat_without_a_name_is_for_the_first_model_that_chats(
    client: httpx.Client, route: str, body: dict[str, Any]
) -> None:
    assert _answer(client, route, **body)["model"] == CHAT
    assert _answer(client, route, model=DEFAULT, **body)["model"] == DEFAULT


@pytest.mark.parametrize("route", ["/v1/messages/count_tokens", "/tokenize", "/apply-template"])
def test_what_a_chat_would_be_is_told_of_the_same_model(client: httpx.Client, route: str) -> None:
    meant = _answer(client, route, messages=MESSAGES)
    assert meant == _answer(client, route, messages=MESSAGES, model=CHAT)
    assert meant != _answer(client, route, messages=MESSAGES, model=DEFAULT)


def test_a_completion_without_a_name_is_for_the_first_model(client: httpx.Client) -> None:
    assert _answer(client, "/v1/completions", prompt="Once", max_tokens=1)["model"] == DEFAULT
    text = {"content": "Once upon a time"}
    assert _answer(client, "/tokenize", **text) == _answer(
        client, "/tokenize", model=DEFAULT, **text
    )


def test_where_no_model_was_made_to_chat_the_first_one_answers() -> None:
    with serving(DEFAULT, f"again={DEFAULT}") as live, live.client() as client:
        body = {"messages": MESSAGES, "max_tokens": 1}
        assert _answer(client, "/v1/chat/completions", **body)["model"] == DEFAULT


def test_a_checkpoint_that_is_not_packed_tells_what_it_was_made_for(
    checkpoint: Path, tmp_path: Path
) -> None:
    purpose = purpose_of(str(checkpoint))
    assert purpose is not None
    assert (purpose.generates, purpose.embeds) == (True, True)
    assert purpose_of(str(tmp_path / "gone")) is None
