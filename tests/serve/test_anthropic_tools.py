"""Tools, thoughts and forms of answers by Anthropic's own SDK, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest
from live_server import PATIENCE_S, Live, serving, with_template

from trilobit.bundled import DEFAULT
from trilobit.serve.anthropic.conversation import Conversation
from trilobit.serve.errors import ApiError
from trilobit.text.tools import ToolCall

THINKS = "{% for m in messages %}{{ m.content }}\n{% endfor %}{# </think> #}<think>\n"
MESSAGES: Any = [{"role": "user", "content": "Who is it?"}]
ASKED: Any = {"model": DEFAULT, "messages": MESSAGES, "max_tokens": 200}
WHERE = {"type": "object", "properties": {"where": {"enum": ["park", "home"]}}}
TOOLS: Any = [
    {"name": "go", "description": "To go.", "input_schema": WHERE | {"required": ["where"]}},
    {"name": "stop", "input_schema": {"type": "object"}, "type": "custom", "strict": True},
]
USED: Any = {"type": "tool_use", "id": "toolu_1", "name": "go", "input": {"where": "park"}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "There is a dog."}
HISTORY: Any = [
    *MESSAGES,
    {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, USED]},
    {"role": "user", "content": [RESULT, {"type": "text", "text": "And now?"}]},
]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    thinking = with_template(tmp_path_factory.mktemp("thinking"), THINKS)
    with serving(settings={"models": {DEFAULT: DEFAULT, "thinks": thinking}}) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="x", timeout=PATIENCE_S) as made:
        yield made


@pytest.mark.parametrize("choice", ["any", "tool"])
def test_a_call_that_must_come_comes_whole_and_streamed(
    client: anthropic.Anthropic, choice: str
) -> None:
    wanted: Any = {"type": choice, "disable_parallel_tool_use": True}
    if choice == "tool":
        wanted["name"] = "go"
    # Without chance both are the same.
    asked = ASKED | {"tools": TOOLS, "tool_choice": wanted, "extra_body": {"temperature": 0}}
    done = client.messages.create(**asked)
    assert done.stop_reason == "tool_use"
    [call] = done.content
    assert call.type == "tool_use"
    assert call.id.startswith("toolu_")
    assert choice == "any" or call.name == "go"
    if call.name == "go":
        assert call.input["where"] in ("park", "home")
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream if event.type.startswith(("content", "message"))]
        again = stream.get_final_message()
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert again.stop_reason == "tool_use"
    [same] = again.content
    assert (same.type, same.name, same.input) == ("tool_use", call.name, call.input)


def test_several_calls_of_an_answer_are_blocks_behind_each_other(
    client: anthropic.Anthropic,
) -> None:
    tool = TOOLS[1]
    most = 0
    for number in range(6):
        # Without chance, and another conversation each time.
        words = [{"role": "user", "content": f"Who is it? {'It is Tom. ' * number}"}]
        asked = ASKED | {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 350}
        asked |= {"messages": words, "extra_body": {"temperature": 0}}
        with client.messages.stream(**asked) as stream:
            indices = [event.index for event in stream if event.type == "content_block_start"]
            content = stream.get_final_message().content
        assert indices == list(range(len(content)))
        calls = [block for block in content if block.type == "tool_use"]  # the context may end one
        assert {block.name for block in calls} == {"stop"}
        assert len({block.id for block in calls}) == len(calls)
        most = max(most, len(calls))
    assert most > 1


def test_a_tool_that_must_not_be_called_is_not_told_of(client: anthropic.Anthropic) -> None:
    def tokens(**more: Any) -> int:
        return client.messages.count_tokens(model=DEFAULT, messages=MESSAGES, **more).input_tokens

    plain = tokens()
    assert tokens(tools=TOOLS, tool_choice={"type": "none"}) == plain
    assert tokens(tools=TOOLS[:1]) > plain
    assert tokens(tools=TOOLS) > tokens(tools=TOOLS[:1])


def test_calls_and_their_results_are_read_as_openais_are(
    live: Live, client: anthropic.Anthropic
) -> None:
    done = client.messages.create(**ASKED | {"messages": HISTORY, "tools": TOOLS, "max_tokens": 8})
    assert 1 <= done.usage.output_tokens <= 8
    function = {"name": "go", "arguments": '{"where": "park"}'}
    call: Any = {"id": "toolu_1", "type": "function", "function": function}
    openais: Any = [
        *MESSAGES,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "name": "go", "content": "There is a dog."},
        {"role": "user", "content": "And now?"},
    ]
    tools: Any = [
        {"type": "function", "function": {**tool, "parameters": tool["input_schema"]}}
        for tool in TOOLS
    ]
    for tool in tools:
        for name in ("input_schema", "type", "strict"):
            tool["function"].pop(name, None)
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", timeout=PATIENCE_S) as other:
        same = other.chat.completions.create(
            model=DEFAULT, messages=openais, tools=tools, max_tokens=1
        )
    assert same.usage is not None
    usage = done.usage
    read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert same.usage.prompt_tokens == read


def test_blocks_become_messages() -> None:
    def chat(*messages: dict[str, Any]) -> list[dict[str, Any]]:
        told: Any = list(messages)
        return Conversation(messages=told).chat(billing_header=False)[1:]

    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    failed = {**RESULT, "is_error": True, "content": [{"type": "text", "text": "No park."}]}
    empty = {"type": "tool_result", "tool_use_id": "toolu_1"}
    call, told, nothing = chat(
        *MESSAGES,
        {"role": "assistant", "content": [thought, USED]},
        {"role": "user", "content": [failed, empty]},
    )
    assert (call["content"], call["reasoning_content"]) == (None, "Hm.")
    assert call["tool_calls"][0]["id"] == "toolu_1"
    assert [(one["role"], one["content"]) for one in (told, nothing)] == [
        ("tool", "Error: No park."),
        ("tool", ""),
    ]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [("", {}), ("{}", {}), ('{"a": 1}', {"a": 1}), ("[1]", {"arguments": [1]}), ("{", "{")],
)
def test_input_is_an_object_whatever_a_model_wrote(arguments: str, wanted: Any) -> None:
    wanted = {"arguments": wanted} if isinstance(wanted, str) else wanted
    assert ToolCall(id="call_1", name="go", arguments=arguments).object == wanted


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([USED], "messages.2.content.0.type: 'tool_use'; models here read text or tool_result"),
        ([RESULT | {"tool_use_id": "toolu_2"}], r"messages.2.content.0.tool_use_id: no tool_use"),
        ([RESULT | {"content": 1}], "messages.2.content.0.content: expected a text or blocks"),
        ([RESULT | {"content": [{"type": "image"}]}], "0.content.0.type: 'image'; models here"),
        ([{"type": "text", "text": "a"}, RESULT], "messages.2.content.1: tool_result blocks stand"),
        ([RESULT | {"toolset_name": "x"}], "no field 'toolset_name' of tool_result"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_with_their_place(
    blocks: list[Any], words: str
) -> None:
    with pytest.raises(ApiError, match=words):
        Conversation(messages=[*HISTORY[:2], {"role": "user", "content": blocks}]).chat(
            billing_header=False
        )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_choice: needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice: type 'tool' needs"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "fly"}}, "no tool is named"),
        ({"tools": [TOOLS[0] | {"name": "a b"}]}, "a function is named 'a b'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "defer_loading"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two functions have the same name"),
    ],
)
def test_tools_that_cannot_be_offered_are_named(
    client: anthropic.Anthropic, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words):
        client.messages.create(**ASKED | changed)


def test_an_answer_fits_its_schema(client: anthropic.Anthropic) -> None:
    class Child(pydantic.BaseModel, extra="forbid"):
        name: Literal["Tom", "Lily"]

    schema = {"type": "json_schema", "schema": Child.model_json_schema()}
    done = client.messages.create(output_config={"format": schema}, **ASKED)
    [block] = done.content
    assert block.type == "text"
    assert json.loads(block.text).keys() == {"name"}
    parsed = client.messages.parse(output_format=Child, **ASKED).parsed_output
    assert isinstance(parsed, Child)


def test_thoughts_are_blocks_where_they_are_asked_for(client: anthropic.Anthropic) -> None:
    asked = ASKED | {"model": "thinks", "max_tokens": 12, "extra_body": {"temperature": 0}}
    [plain] = client.messages.create(**asked).content
    assert plain.type == "text"
    [thought] = client.messages.create(thinking={"type": "adaptive"}, **asked).content
    assert (thought.type, thought.thinking) == ("thinking", plain.text)
    with client.messages.stream(thinking={"type": "adaptive"}, **asked) as stream:
        [again] = stream.get_final_message().content
    assert (again.type, again.thinking) == ("thinking", plain.text)
    # Beside tools a thought is no answer, and not told unless it is asked for.
    [none] = client.messages.create(tools=TOOLS[1:], **asked).content
    assert (none.type, none.text) == ("text", "")
