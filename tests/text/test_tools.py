"""Tools: what a chat tells a model of them, and calls out of what it writes, in any pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_family_templates import FALCON3, LLAMA31, QWEN3

from trilobit import LLM, RequestError, SamplingParams
from trilobit.text import chat_template
from trilobit.text.reasoning import Thoughts
from trilobit.text.reply import Reply
from trilobit.text.tools import Form, Toolbox, form_of, told

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city"],
        },
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
TOOLS = [WEATHER, NOW]
# What a template of BitNet b1.58 2B4T writes, which knows no tools
PLAIN = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
# The parts of Qwen3's and Llama 3.2's templates that are about tools
QWEN_TOOLS = """{%- if tools %}{{- '# Tools <tools>' }}{%- for tool in tools %}
{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "</tools> <tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args>}" }}{%- endif %}
{%- for message in messages %}{{- message.role }}: {{ message.content }}
{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}
{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\\n</tool_call>' }}
{%- endfor %}{%- endif %}{%- endfor %}"""
LLAMA_TOOLS = LLAMA31 + (
    '{# Respond in the format {"name": function name, "parameters": dictionary} #}'
)


def parts(pieces: list[str], form: Form | None, *, thinks: bool = False) -> Any:
    reply = Reply(
        thoughts=Thoughts() if thinks else None, form=form, names=["a", "b"], salt="answer"
    )
    found = [reply.add(piece) for piece in pieces] + [reply.finish()]
    return (
        "".join(one.thought for one in found),
        "".join(one.text for one in found),
        [call for one in found for call in one.calls],
    )


A, B = '{"name": "a", "arguments": {"x": "}{"}}', '{"name": "b", "arguments": {}}'
CASES: list[tuple[str, Form, str, list[tuple[str, str]]]] = [
    (f"<tool_call>\n{A}\n</tool_call>", "marked", "", [("a", '{"x": "}{"}')]),
    (
        f"I look.\n<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>\n",
        "marked",
        "I look.",
        [("a", '{"x": "}{"}'), ("b", "{}")],
    ),
    (f"<tool_call>[{A}, {B}]</tool_call>", "list", "", [("a", '{"x": "}{"}'), ("b", "{}")]),
    (f"<tool_call>\n{A}", "marked", "", [("a", '{"x": "}{"}')]),  # ended by a stop token
    ("<tool_call>\nno</tool_call> x", "marked", "<tool_call>\nno</tool_call> x", []),
    ("<tool_call>3</tool_call>", "marked", "<tool_call>3</tool_call>", []),
    ("<tool_call>\n{", "marked", "<tool_call>\n{", []),
    # Behind a call, one that was cut off is neither a call nor text.
    (
        f"<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B[:12]}",
        "marked",
        "",
        [("a", '{"x": "}{"}')],
    ),
    (f"<tool_call>\n{A}\n</tool_call>\n<t", "marked", "", [("a", '{"x": "}{"}')]),
    ('{"name": "a"}; {"name": "b", "par', "bare", "", [("a", "{}")]),
    ("a < b <tool", "marked", "a < b <tool", []),
    ("Hello\n", "marked", "Hello\n", []),
    ('{"name": "a", "parameters": {"x": "é"}}', "bare", "", [("a", '{"x": "é"}')]),
    ('\n<|python_tag|>{"name": "a", "parameters": {}}', "bare", "", [("a", "{}")]),
    ('{"name": "a", "parameters": {}}; {"name": "b"}', "bare", "", [("a", "{}"), ("b", "{}")]),
    ('{"name": "c", "parameters": {}}', "bare", '{"name": "c", "parameters": {}}', []),
    ('{"answer": [1, 2]} yes', "bare", '{"answer": [1, 2]} yes', []),
    ('It is {"name": "a"}', "bare", 'It is {"name": "a"}', []),
    ('{"name": "a", ', "bare", '{"name": "a", ', []),
    ("", "bare", "", []),
]


@pytest.mark.parametrize(("text", "form", "said", "calls"), CASES)
def test_calls_are_found_whatever_the_pieces(
    text: str, form: Form, said: str, calls: list[tuple[str, str]]
) -> None:
    for size in (1, 2, 5, len(text) or 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        _, found_text, found = parts(pieces, form)
        assert (found_text, [(call.name, call.arguments) for call in found]) == (said, calls)
        assert len({call.id for call in found}) == len(calls)


@given(
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                A,
                B,
                "\n",
                " ",
                "x",
                "<",
                "{",
                '"',
                "<think>",
                "</think>",
            ]
        )
    ),
    st.lists(st.integers(1, 9)),
    st.sampled_from(["marked", "list", "bare"]),
    st.booleans(),
)
def test_pieces_change_nothing(
    words: list[str], sizes: list[int], form: Form, thinks: bool
) -> None:
    text = "".join(words)
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parts([*pieces, rest], form, thinks=thinks) == parts([text], form, thinks=thinks)


def test_calls_in_a_thought_are_none() -> None:
    text = f"<think>\n<tool_call>{A}</tool_call>\n</think>\n\n<tool_call>{B}</tool_call>"
    thought, said, calls = parts(list(text), "marked", thinks=True)
    assert thought == f"<tool_call>{A}</tool_call>"
    assert (said, [call.name for call in calls]) == ("", ["b"])


def test_forms_are_known_by_the_template() -> None:
    assert form_of(None) == form_of(PLAIN) == form_of(QWEN3) == form_of(QWEN_TOOLS) == "marked"
    assert form_of(LLAMA_TOOLS) == "bare"
    assert form_of(FALCON3.replace("<tools>", "<tool_call>\\n[\\n")) == "list"


# ---- what is told -----------------------------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            },
            {"id": "2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "sun"},
    {"role": "tool", "tool_call_id": "2", "content": "noon"},
]


def test_a_template_that_takes_tools_gets_them_and_arguments_as_objects() -> None:
    messages, tools = told(CHAT, Toolbox(TOOLS), QWEN_TOOLS)
    text = chat_template.render(QWEN_TOOLS, messages, tools=tools)
    assert json.dumps(WEATHER) in text
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in text
    assert '{"name": "now", "arguments": {}}' in text
    assert told(CHAT, Toolbox(TOOLS, "none"), QWEN_TOOLS)[1] is None


def test_another_template_is_told_in_words() -> None:
    messages, tools = told(CHAT, Toolbox(TOOLS), PLAIN)
    assert tools is None
    text = chat_template.render(PLAIN, messages)
    assert text.startswith("System: Be kind.\n\n# Tools\n")
    assert json.dumps(WEATHER) in text
    assert (
        'Assistant: <tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|eot_id|>'
        "User: <tool_response>\nsun\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    ) in text
    flat = [{**CHAT[2], "tool_calls": [CHAT[2]["tool_calls"][0]["function"]]}]  # type: ignore[index]
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in chat_template.render(
        PLAIN, told(flat, None, PLAIN)[0]
    )
    alone, _ = told([{"role": "user", "content": "x"}], None, PLAIN)
    assert alone == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Toolbox([]), "tools: 0 are given"),
        (lambda: Toolbox([NOW] * 2), "tools: two functions have the same name"),
        (lambda: Toolbox([NOW] * 129), "tools: 129 are given"),
        (lambda: Toolbox("now"), "tools: expected a list"),  # type: ignore[arg-type]
        (lambda: Toolbox([{"type": "x"}]), "tools: a tool is no"),
        (lambda: Toolbox([{"type": "function", "function": {"name": "a b"}}]), "is named 'a b'"),
        (lambda: Toolbox([{"type": "function", "function": {"name": "é"}}]), "is named 'é'"),
        (lambda: Toolbox(TOOLS, "never"), "tool_choice: no tool is named 'never'"),
        (lambda: Toolbox(TOOLS, {"type": "function"}), "tool_choice: expected 'auto'"),
        (lambda: Toolbox(TOOLS, {"function": {"name": "none"}}), "no tool is named 'none'"),
        (lambda: Toolbox([{**NOW, "x": {1}}]), "tools is no JSON"),
        (lambda: Toolbox([{**NOW, "x": "y" * 400_000}]), "tools has 400"),
        (
            lambda: told(
                [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "a", "arguments": "{"}}],
                    }
                ],
                None,
                PLAIN,
            ),
            "arguments of the call of 'a' are no JSON",
        ),
        (
            lambda: told([{"role": "assistant", "tool_calls": [3]}], None, PLAIN),
            "a tool call is no",
        ),
    ],
)
def test_what_is_no_tool_is_one_clear_line(make: Any, error: str) -> None:
    with pytest.raises(RequestError, match=error) as caught:
        make()
    assert len(str(caught.value)) < 300


# ---- a model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1, kv_memory_mb=8)


QUESTION = [{"role": "user", "content": "How is the weather?"}]


@pytest.mark.parametrize("template", [None, QWEN_TOOLS, LLAMA_TOOLS, "list"])
@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_must_come_comes_and_fits(llm: LLM, template: str | None, seed: int) -> None:
    if template == "list":
        template = QWEN_TOOLS.replace("<tool_call>\\n{", "<tool_call>\\n[{")
    object.__setattr__(llm._prompter, "chat_template", template)
    params = SamplingParams(max_tokens=400, seed=seed)
    done = llm.chat(
        QUESTION,
        params,
        tools=TOOLS if template else [NOW],  # more words than this model has room for
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert done.text == ""
    [call] = done.tool_calls
    arguments = json.loads(call.arguments)
    if call.name == "get_weather":
        assert arguments.keys() <= {"city", "days"}
        assert arguments["city"] in ("Paris", "Rome")
    else:
        assert (call.name, arguments) == ("now", {})
    named = {"type": "function", "function": {"name": "now"}}
    done = llm.chat(QUESTION, params, tools=TOOLS, tool_choice=named, parallel_tool_calls=False)
    assert [(call.name, call.arguments) for call in done.tool_calls] == [("now", "{}")]
    again = llm.chat(QUESTION, params, tools=TOOLS, tool_choice=named, parallel_tool_calls=False)
    assert again.tool_calls == done.tool_calls


@pytest.mark.parametrize("form", ["marked", "list"])
def test_several_calls_may_come_at_once(llm: LLM, form: Form) -> None:
    several = set()
    for seed in range(8):
        params = SamplingParams(
            max_tokens=400, seed=seed, grammar=Toolbox([NOW], "required").grammar(form)
        )
        done = llm.generate("Once", params)
        assert done.finish_reason == "stop"
        _, said, calls = parts([done.text], form)
        assert said == ""
        assert 1 <= len(calls) <= 8
        several.add(len(calls))
    assert max(several) > 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_model_that_thinks_may_think_before_it_must_call(llm: LLM, begun: bool) -> None:
    template = QWEN_TOOLS + "{# <think> </think> #}" + ("<think>\n" if begun else "")
    object.__setattr__(llm._prompter, "chat_template", template)
    toolbox = Toolbox([NOW], "required", False)
    ids = llm._prompter.chat_ids(QUESTION, toolbox)
    params = llm._prompter.answering(ids, SamplingParams(), toolbox)
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    thought = "Hm.\n<b> Well.\n</think>\n\n"
    state = llm._prompter.grammar(params).start()  # type: ignore[union-attr]
    for token_id in llm.encode(("" if begun else "<think>\n") + thought + call)[1:]:
        state.accept(token_id)
    # Without a thought, where none has begun.
    state = llm._prompter.grammar(params).start()  # type: ignore[union-attr]
    for token_id in llm.encode(call)[1:]:
        state.accept(token_id)
    assert state.ended != begun
    reply = llm._prompter.reply(ids, toolbox)
    one, two = reply.add(("" if begun else "<think>\n") + thought + call), reply.finish()
    assert (one.thought + two.thought, one.text + two.text) == ("Hm.\n<b> Well.", "")
    assert [made.name for made in one.calls + two.calls] == ["now"]


def test_tools_that_spell_special_tokens_are_text(llm: LLM) -> None:
    object.__setattr__(llm._prompter, "chat_template", QWEN_TOOLS)
    special = llm.tokenizer.token(1)  # type: ignore[union-attr]
    tool = {"type": "function", "function": {"name": "now", "description": f"a {special} b"}}
    assert 1 not in llm._prompter.chat_ids(QUESTION, Toolbox([tool]))


def test_a_call_and_a_schema_do_not_go_together(llm: LLM) -> None:
    with pytest.raises(RequestError, match="tool_choice asks for a call, and regex for something"):
        llm.chat(QUESTION, SamplingParams(regex="a"), tools=TOOLS, tool_choice="required")
