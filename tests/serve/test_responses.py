"""OpenAI's Responses API by its SDK against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT
from trilobit.serve.openai.response_input import ResponsesBody
from trilobit.serve.openai.response_output import Output
from trilobit.text.reply import Part
from trilobit.text.tools import ToolCall

PROMPT = "Once upon a time there was a dog"
WHERE = {"type": "object", "properties": {"where": {"enum": ["park", "home"]}}}
GO: dict[str, Any] = {
    "type": "function",
    "name": "go",
    "parameters": WHERE | {"required": ["where"]},
}
STOP: dict[str, Any] = {
    "type": "function",
    "name": "stop",
    "description": "To stop.",
    "strict": True,
}
CALL = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "go",
    "arguments": '{"where": "park"}',
}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "There is a dog."}
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


# ---- tools, forms, thoughts ------------------------------------------------------------------

CALLS = ("output_item.added", "function_call_arguments.delta", "function_call_arguments.done")
ASKED: dict[str, Any] = GREEDY | {"max_output_tokens": 300, "input": PROMPT}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "go"}])
def test_a_call_that_must_come_comes_whole_and_streamed(client: openai.OpenAI, choice: Any) -> None:
    asked = ASKED | {"tools": [GO, STOP], "tool_choice": choice, "parallel_tool_calls": False}
    done = client.responses.create(**asked)
    assert done.status == "completed"
    assert done.tool_choice == choice or done.tool_choice.name == "go"  # type: ignore[union-attr]
    assert done.output_text == ""
    [call] = done.output
    assert call.type == "function_call"
    assert isinstance(choice, str) or call.name == "go"
    if call.name == "go":
        assert json.loads(call.arguments)["where"] in ("park", "home")
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        again = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == ["created", "in_progress", *CALLS, "output_item.done", "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    [same] = again.output
    assert same.type == "function_call"
    assert (same.name, same.arguments) == (call.name, call.arguments)


def test_several_calls_are_items_of_their_own(client: openai.OpenAI) -> None:
    for seed in range(30):  # until the model calls twice
        asked = ASKED | {"tools": [GO], "tool_choice": "required", "temperature": 1.0}
        asked["extra_body"] = {"seed": seed}
        whole = client.responses.create(**asked)
        calls = [item for item in whole.output if item.type == "function_call"]
        if len(calls) > 1:
            break
    assert len(calls) > 1
    events = list(client.responses.create(stream=True, **asked))
    assert len({call.call_id for call in calls}) == len({call.id for call in calls}) == len(calls)
    told = [event for event in events if event.type == "response.output_item.done"]
    assert [event.output_index for event in told] == list(range(len(told)))
    items = [event.item for event in told if event.item.type == "function_call"]
    assert [call.arguments for call in items] == [call.arguments for call in calls]


def test_what_calls_return_goes_back_as_a_chat_has_it(client: openai.OpenAI) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    second = CALL | {"call_id": "call_2", "id": "fc_2", "status": "completed"}
    other = RESULT | {"call_id": "call_2", "output": [{"type": "input_text", "text": "A cat."}]}
    items = [{"role": "user", "content": "Who?"}, thought, CALL, second, RESULT, other]
    body = ResponsesBody.model_validate({"input": items, "tools": [GO]})
    call = {"type": "function", "function": {key: CALL[key] for key in ("name", "arguments")}}
    assert body.messages() == [
        {"role": "user", "content": "Who?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1"} | call, {"id": "call_2"} | call],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "There is a dog."},
        {"role": "tool", "tool_call_id": "call_2", "content": "A cat."},
    ]
    done = client.responses.create(**ASKED | {"input": items, "tools": [GO]})
    chat: Any = body.messages()
    tool: Any = {"type": "function", "function": {key: GO[key] for key in ("name", "parameters")}}
    same = client.chat.completions.create(
        model=DEFAULT, messages=chat, tools=[tool], temperature=0, max_tokens=300
    )
    assert done.output_text == same.choices[0].message.content
    assert done.usage is not None
    assert same.usage is not None
    assert done.usage.input_tokens == same.usage.prompt_tokens


class Place(pydantic.BaseModel):
    where: Literal["park", "home"]


def test_an_answer_is_held_to_a_schema(client: openai.OpenAI) -> None:
    done = client.responses.parse(text_format=Place, **ASKED)
    assert isinstance(done.output_parsed, Place)
    with client.responses.stream(text_format=Place, **ASKED) as stream:
        assert stream.get_final_response().output_parsed == done.output_parsed
    any_object: Any = {"format": {"type": "json_object"}}
    free = client.responses.create(text=any_object, **ASKED | {"max_output_tokens": 200})
    if free.status == "completed":
        assert isinstance(json.loads(free.output_text), dict)
    assert free.output_text.startswith("{")


def test_an_asynchronous_client_gets_calls_on_a_stream(live: Live) -> None:
    async def main() -> list[str]:
        url = f"{live.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=PATIENCE_S) as client:
            asked = ASKED | {"tools": [GO], "tool_choice": "required", "stream": True}
            asked["parallel_tool_calls"] = False
            stream = await client.responses.create(**asked)
            return [event.type async for event in stream]

    kinds = asyncio.run(main())
    assert kinds[-1] == "response.completed"
    assert "response.function_call_arguments.done" in kinds


def test_items_are_thoughts_texts_and_calls_in_the_order_they_come() -> None:
    events: list[dict[str, Any]] = []

    def event(kind: str, **fields: Any) -> bytes:
        events.append({"type": kind} | json.loads(json.dumps(fields)))
        return b""

    output = Output("x", event)
    call = ToolCall(id="call_1", name="go", arguments="{}")
    parts = [
        Part(thought="Hm"),
        Part(thought="m."),
        Part(text="I go.", calls=(call,)),
        Part(text="Now"),
    ]
    for part in parts:
        list(output.add(part))
    list(output.end("incomplete"))
    told = [(one["type"], one["status"]) for one in output.items]
    assert told == [
        ("reasoning", "completed"),
        ("message", "completed"),
        ("function_call", "completed"),
        ("message", "incomplete"),
    ]
    assert output.items[0]["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert [one["content"][0]["text"] for one in output.items[1::2]] == ["I go.", "Now"]
    added = [one for one in events if one["type"] == "response.output_item.added"]
    done = [one for one in events if one["type"] == "response.output_item.done"]
    assert [one["output_index"] for one in added] == [one["output_index"] for one in done]
    assert [one["item"] for one in done] == output.items
    assert all(one["item"]["status"] == "in_progress" for one in added)


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
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "item_reference"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [RESULT]}, r"input\.0"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [GO, GO]}, "same name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [GO], "tool_choice": {"type": "function", "name": "fly"}}, "fly"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}}, "not"),
        ({"background": True}, "background"),
    ],
)
def test_what_cannot_be_asked_is_named(
    client: openai.OpenAI, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(**{"input": PROMPT} | GREEDY | changed)
