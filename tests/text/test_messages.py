"""Conversations as callers give them: what a template gets is what transformers gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from transformers import AutoTokenizer

from trilobit import LLM, RequestError, SamplingParams
from trilobit.conversion import convert
from trilobit.synth import synth

TEMPLATE = """{%- for m in messages %}{{ m.role }}
{%- if m.content is defined %}: {{ m.content }}{% endif %}
{%- if m.name is defined %} ({{ m.name }}){% endif %}
{%- for call in m.tool_calls or [] %} {{ call.function.name }}
{{- call.function.arguments | tojson }}{% endfor %}
{%- if m.weight is defined %} {{ m.weight + 1 }}{% endif %}
{% endfor %}"""
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": ["a", 1, None, 0.5]}}}
ONE = SamplingParams(max_tokens=1, temperature=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    directory = tmp_path_factory.mktemp("messages") / "model"
    synth(tiny_config(), directory, seed=1)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def llm(directory: Path) -> LLM:
    convert(directory, directory.parent / "m.trilobit")
    return LLM(directory.parent / "m.trilobit", threads=1)


CHATS: dict[str, list[dict[str, Any]]] = {
    "tool calls": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "a dog", "name": "look", "tool_call_id": "1"},
    ],
    "tool calls without content": [{"role": "assistant", "tool_calls": [CALL, CALL]}],
    "a name of None": [{"role": "user", "content": "x", "name": None}],
    "a content of None": [{"role": "assistant", "content": None}],
    "numbers": [{"role": "user", "content": "x", "weight": 3}],
    "a float": [{"role": "user", "content": "x", "weight": 0.5}],
    "a flag": [{"role": "user", "content": "x", "seen": True}],
}


@pytest.mark.parametrize("name", CHATS)
def test_other_fields_reach_the_template_as_in_transformers(
    llm: LLM, directory: Path, name: str
) -> None:
    theirs = AutoTokenizer.from_pretrained(directory)
    expected = theirs.apply_chat_template(CHATS[name], add_generation_prompt=True)["input_ids"]
    assert llm.chat_ids(CHATS[name]) == expected
    assert llm.chat(CHATS[name], ONE).token_ids == llm.generate(expected, ONE).token_ids


def test_text_parts_are_one_text(llm: LLM) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "dog"}]
    joined = [{"role": "user", "content": "a dog"}]
    assert llm.chat_ids([{"role": "user", "content": parts}]) == llm.chat_ids(joined)


def test_special_tokens_spelt_in_any_field_stay_text(llm: LLM) -> None:
    begin = llm.tokenizer.token(0) if llm.tokenizer else None
    assert begin is not None
    calls = [{"function": {"name": begin, "arguments": {begin: [begin]}}}]
    ids = llm.chat_ids([{"role": "user", "content": begin, "name": begin, "tool_calls": calls}])
    assert 0 not in ids
    assert llm.decode(ids).count(begin) == 5


def endless() -> list[Any]:
    inner: list[Any] = []
    inner += [inner, inner]
    return inner


BAD: dict[str, tuple[Any, str]] = {
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x" * 9999}}]}],
        "a part of a content is {'image_url'.*takes only {'type': 'text', 'text': ...}",
    ),
    "a part without text": ([{"role": "user", "content": [{"type": "text"}]}], "a part of"),
    "a text for a part": ([{"role": "user", "content": ["x"]}], "a part of a content is 'x'"),
    "a number": ([{"role": "user", "content": 5}], "a content is 5; expected a text or a list"),
    "bytes": ([{"role": "user", "content": b"x"}], "a content is b'x'"),
    "a role of None": ([{"role": None, "content": "x"}], "no text 'role'"),
    "no role": ([{"content": "x" * 99999}], "no text 'role'"),
    "no content": ([{"role": "user"}], "no 'content'"),
    "texts": (["hello"], "a message is no {'role': ..., 'content': ...}: 'hello'"),
    "a text": ("hello", "expected a list of"),
    "None": (None, "expected a list of"),
    "a number for all": (7, "expected a list of"),
    "a message alone": ({"role": "user", "content": "x"}, "expected a list of"),
    "an object": ([{"role": "user", "content": "x", "o": object()}], "'o' holds object"),
    "a set": ([{"role": "user", "content": "x", "o": [{1}]}], "'o' holds set"),
    "numbers for names": ([{"role": "user", "content": "x", "o": {1: 2}}], "'o' holds dict"),
    "a field without a name": ([{"role": "user", "content": "x", 3: 4}], "a field is named 3"),
    "a list in itself": ([{"role": "user", "content": "x", "o": endless()}], "'o' holds too much"),
    "a million values": (
        [{"role": "user", "content": "x", "o": [0] * 1_000_000}],
        "'o' holds too much: at most 100,000 values",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_messages_of_another_form_are_refused_in_one_line(llm: LLM, case: str) -> None:
    messages, reason = BAD[case]
    with pytest.raises(RequestError, match=f"^messages: .*{reason}") as refused:
        llm.chat(messages)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("call", ["stream", "logits", "decode"])
@pytest.mark.parametrize("prompts", [["a", "b"], [[1], [2]], [["a"]]], ids=repr)
def test_a_list_where_one_prompt_belongs_is_told_so(llm: LLM, call: str, prompts: Any) -> None:
    with pytest.raises(
        RequestError, match="expected one text or one list of token ids; found several"
    ):
        getattr(llm, call)(prompts)


def test_a_text_among_ids_is_told_so(llm: LLM) -> None:
    with pytest.raises(RequestError, match="token id 'a' is a text; encode it first"):
        llm.generate([1, "a"])  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="nothing to score"):
        llm.score([])
    with pytest.raises(RequestError) as refused:
        llm.score([10**5000])
    assert len(str(refused.value)) < 200
