"""Structured output, tools and thoughts by OpenAI's own SDK, against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import openai
import pydantic
import pytest
from live_server import PATIENCE_S, Live, serving, with_template

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT

MESSAGES: Any = [{"role": "user", "content": "Who is it?"}]
ASKED: Any = {"model": DEFAULT, "messages": MESSAGES, "seed": 3, "max_tokens": 200}


class Name(Enum):
    TOM = "Tom"
    LILY = "Lily"


class Child(pydantic.BaseModel):
    name: Name
    age: int = pydantic.Field(ge=0, le=12)
    friend: Name | None


def tool(name: str, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": [*properties]}
    function = {"name": name, "description": f"To {name}.", "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [tool("go", where={"enum": ["park", "home"]}), tool("stop")]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=PATIENCE_S) as made:
        yield made


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(response_format=Child, **ASKED)
    child = done.choices[0].message.parsed
    assert isinstance(child, Child)
    assert 0 <= child.age <= 12
    with client.chat.completions.stream(response_format=Child, **ASKED) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == child


def test_the_same_comes_of_the_same_schema_in_process(client: openai.OpenAI) -> None:
    schema = Child.model_json_schema()
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "child", "schema": schema}}
    done = client.chat.completions.create(response_format=wanted, temperature=0.7, **ASKED)
    params = SamplingParams(json_schema=schema, seed=3, max_tokens=200)
    with LLM(threads=1, kv_memory_mb=8) as llm:
        assert done.choices[0].message.content == llm.chat(MESSAGES, params).text


def test_any_object(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_object"}
    for seed in range(3):
        asked = ASKED | {"seed": seed, "temperature": 0.5}
        done = client.chat.completions.create(response_format=wanted, **asked).choices[0]
        if done.finish_reason == "stop":
            assert isinstance(json.loads(done.message.content or ""), dict)
        assert (done.message.content or "").startswith("{")


def test_fields_of_other_servers(client: openai.OpenAI) -> None:
    for extra, expression in [
        ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"guided_choice": ["dog", "cat"]}, "dog|cat"),
        ({"guided_grammar": 'start: "a" "b"'}, "ab"),
        ({"guided_json": {"enum": ["x"]}}, '"x"'),
        ({"structured_outputs": {"regex": "[0-9]{4}"}}, "[0-9]{4}"),
        ({"structured_outputs": {"json": '{"enum": [1]}'}}, "1"),
    ]:
        done = client.chat.completions.create(extra_body=extra, **ASKED)
        assert re.fullmatch(expression, done.choices[0].message.content or "")
        text = client.completions.create(
            model=DEFAULT, prompt="Once", max_tokens=50, extra_body=extra
        )
        assert re.fullmatch(expression, text.choices[0].text)
    done = client.chat.completions.create(
        extra_body={"min_tokens": 30}, logit_bias={"1": 100}, **ASKED
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == 31


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"response_format": {"type": "json_schema"}}, "type json_schema needs json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_choice": []}, "choice is an empty list"),
        ({"structured_outputs": {"choice": []}}, "choice is an empty list"),
        ({"guided_regex": "["}, "regex: cannot be used"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "regex and choice are given"),
        (
            {"guided_json": {}, "response_format": {"type": "json_object"}},
            "the output is bounded twice",
        ),
        ({"guided_json": {"type": "array", "contains": {}}}, "json_schema: cannot be used"),
        ({"tools": [{"type": "function"}]}, "tools: a tool is no"),
        ({"tools": TOOLS, "tool_choice": "fly"}, "no tool is named 'fly'"),
        ({"tool_choice": "required"}, "tool_choice: needs tools"),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "something else"),
    ],
)
def test_what_cannot_be_followed_is_a_bad_request(
    client: openai.OpenAI, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        client.chat.completions.create(extra_body=fields, **ASKED)
    assert len(str(caught.value)) < 800


def test_a_grammar_that_fails_on_the_way_ends_its_request_only(live: Live) -> None:
    async def main() -> None:
        base = f"{live.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", timeout=PATIENCE_S) as client:
            other: Any = {"model": DEFAULT, "prompt": "Once", "max_tokens": 60, "temperature": 0}
            alone = (await client.completions.create(**other)).choices[0].text

            async def failing() -> str:
                extra = {"guided_regex": "(.{0,1000}){0,1000}", "min_tokens": 99}
                with pytest.raises(openai.BadRequestError, match="cannot be followed") as caught:
                    await client.completions.create(
                        model=DEFAULT, prompt="Once", max_tokens=400, extra_body=extra
                    )
                return str(caught.value)

            async def neighbour() -> str:
                return (await client.completions.create(**other)).choices[0].text

            texts = await asyncio.gather(*(neighbour() for _ in range(12)), failing())
            assert texts[:-1] == [alone] * 12

    asyncio.run(main())


# ---- tools ------------------------------------------------------------------------------------


def test_a_call_that_must_come_comes_whole_and_streamed(client: openai.OpenAI) -> None:
    asked = ASKED | {"tools": TOOLS, "parallel_tool_calls": False}
    named: Any = {"type": "function", "function": {"name": "go"}}
    for choice in ("required", named):
        done = client.chat.completions.create(tool_choice=choice, **asked).choices[0]
        assert done.finish_reason == "tool_calls"
        assert done.message.content is None
        [call] = done.message.tool_calls or []
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        if choice == named or call.function.name == "go":
            assert call.function.name == "go"
            assert arguments["where"] in ("park", "home")
        with client.chat.completions.stream(tool_choice=choice, **asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        assert streamed.finish_reason == "tool_calls"
        [again] = streamed.message.tool_calls or []
        assert (again.function.name, again.function.arguments) == (
            call.function.name,
            call.function.arguments,
        )
        assert not streamed.message.content


def test_what_a_call_returns_goes_back_to_the_model(client: openai.OpenAI) -> None:
    asked = ASKED | {"tools": [TOOLS[1]], "max_tokens": 8}
    call = {"id": "c1", "type": "function", "function": {"name": "stop", "arguments": "{}"}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It stopped."},
    ]
    done = client.chat.completions.create(**(asked | {"messages": messages}))
    assert done.choices[0].message.content
    none = client.chat.completions.create(tool_choice="none", **asked)
    plain = client.chat.completions.create(**(ASKED | {"max_tokens": 8}))
    assert none.choices[0].message.content == plain.choices[0].message.content


# ---- thoughts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The bundled model with the template of one that thinks."""
    # As Qwen 3's: who wants no thought gets an empty one, which the answer stands behind.
    template = (
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}"
    )
    path = with_template(tmp_path_factory.mktemp("thinking"), template)
    with (
        serving(path) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=PATIENCE_S) as made,
    ):
        yield made


def test_thoughts_are_told_apart_where_that_is_asked_for(thinking: openai.OpenAI) -> None:
    answer = "<think>\nHm.\n</think>\n\nYes."
    asked: Any = {"model": thinking.models.list().data[0].id, "messages": MESSAGES}
    extra = {"guided_choice": [answer]}
    plain = thinking.chat.completions.create(extra_body=extra, **asked)
    assert plain.choices[0].message.content == answer
    extra["include_reasoning"] = True  # type: ignore[assignment]
    message = thinking.chat.completions.create(extra_body=extra, **asked).choices[0].message
    assert (message.content, message.model_extra) == ("Yes.", {"reasoning_content": "Hm."})
    chunks = list(thinking.chat.completions.create(extra_body=extra, stream=True, **asked))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Yes."
    thoughts = [(delta.model_extra or {}).get("reasoning_content", "") for delta in deltas]
    assert "".join(thoughts) == "Hm."


def test_an_effort_turns_thinking_on_and_off_where_the_template_knows_that(
    thinking: openai.OpenAI, client: openai.OpenAI
) -> None:
    def prompt_tokens(asked: openai.OpenAI, **more: Any) -> int:
        model = asked.models.list().data[0].id
        done = asked.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=1, temperature=0, **more
        )
        assert done.usage is not None
        return done.usage.prompt_tokens

    usual = prompt_tokens(thinking)
    for effort in ("low", "medium", "high", "xhigh"):
        assert prompt_tokens(thinking, reasoning_effort=effort) == usual
    for effort in ("none", "minimal"):
        assert prompt_tokens(thinking, reasoning_effort=effort) > usual
        assert prompt_tokens(client, reasoning_effort=effort) == prompt_tokens(client)
    model = thinking.models.list().data[0].id
    tokens = [
        thinking.responses.create(
            model=model, input="Who?", max_output_tokens=1, reasoning={"effort": effort}
        ).usage
        for effort in ("low", "none")
    ]
    assert tokens[0] is not None
    assert tokens[1] is not None
    assert tokens[1].input_tokens > tokens[0].input_tokens
