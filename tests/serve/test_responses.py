"""OpenAI's Responses API by its SDK against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT

PROMPT = "Once upon a time there was a dog"
GREEDY: dict[str, Any] = {"model": DEFAULT, "temperature": 0, "max_output_tokens": 20}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0
    ) as made:
        yield made


@pytest.fixture(scope="module")
def text() -> str:
    with LLM() as llm:
        messages = [{"role": "user", "content": PROMPT}]
        return llm.chat(messages, SamplingParams(temperature=0, max_tokens=20)).text


def test_a_response_is_what_the_model_gives_in_process(client: openai.OpenAI, text: str) -> None:
    done = client.responses.create(input=PROMPT, store=True, **GREEDY)
    assert done.output_text == text
    assert done.status == "incomplete"
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.usage is not None
    assert done.usage.output_tokens == 20
    assert done.store is False


def test_items_are_what_the_text_is(client: openai.OpenAI, text: str) -> None:
    part = {"type": "input_text", "text": PROMPT}
    for item in ({"role": "user", "content": PROMPT}, {"role": "user", "content": [part]}):
        assert client.responses.create(input=[item], **GREEDY).output_text == text  # type: ignore[list-item]
    told = client.responses.create(input=PROMPT, instructions="A story.", **GREEDY)
    system = {"role": "developer", "content": "A story."}
    items = [system, {"role": "user", "content": PROMPT}]
    again = client.responses.create(input=items, **GREEDY)  # type: ignore[arg-type]
    assert told.output_text == again.output_text
    answered = [*items, *(item.model_dump() for item in told.output)]
    client.responses.create(input=[*answered, items[1]], **GREEDY)  # type: ignore[list-item]


def test_a_stream_adds_up_to_the_response(client: openai.OpenAI, text: str) -> None:
    events = list(client.responses.create(input=PROMPT, stream=True, **GREEDY))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == text
    with client.responses.stream(input=PROMPT, **GREEDY) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_told_again_may_be_no_text_of_unicode(live: Live, stream: bool) -> None:
    asked = {"input": PROMPT, "metadata": {"a": "\ud800"}, "max_output_tokens": 3}
    with live.client() as bare:
        headers = {"content-type": "application/json"}
        body = json.dumps(asked | {"stream": stream})
        answer = bare.post("/v1/responses", content=body, headers=headers)
    assert answer.status_code == 200
    assert "max_output_tokens" in answer.text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"background": True}, "background"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: openai.OpenAI, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(**{"input": PROMPT} | GREEDY | changed)
