"""Blocks of a content as Anthropic's API sends them, and as OpenAI's messages have the same.

A model's template and `text.tools` read OpenAI's: a call is a field of the assistant's message,
what it returned is a message of its own.
"""

from __future__ import annotations

import json
import reprlib
from typing import Any

from trilobit.serve.errors import ApiError

# Kind of block -> its fields
_FIELDS = {
    "text": {"text", "citations"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "thinking": {"thinking", "signature"},
}
_OF = {"assistant": ("text", "tool_use", "thinking"), "user": ("text", "tool_result")}
_ALWAYS = {"type", "cache_control"}
_SHOWN = 40  # characters of a name

Content = str | list[dict[str, Any]]


def texts(place: str, content: Content) -> str:
    """A content of text as one; every block is a line of its own."""
    if isinstance(content, str):
        return content
    return "\n".join(
        _checked(f"{place}.{n}", block, ("text",))["text"] for n, block in enumerate(content)
    )


def messages(
    place: str, role: str, content: Content, called: dict[str, str]
) -> list[dict[str, Any]]:
    """What one side said. called: id -> function, of the calls so far; those in it are added.

    Raises ApiError for what no model here reads.
    """
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    said: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    returned: list[dict[str, Any]] = []
    for number, given in enumerate(content):
        where = f"{place}.{number}"
        block = _checked(where, given, _OF.get(role, ("text",)))
        kind = block["type"]
        if kind == "text":
            said.append(block["text"])
        elif kind == "thinking":
            thoughts.append(block["thinking"])
        elif kind == "tool_use":
            called[block["id"]] = block["name"]
            calls.append(_call(block))
        elif said:
            raise _wrong(where, "tool_result blocks stand before those of text")
        else:
            returned.append(_returned(where, block, called))
    message: dict[str, Any] = {"role": role, "content": "\n".join(said)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return returned if returned and not said else [*returned, message]


def _call(block: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    function = {"name": block["name"], "arguments": arguments}
    return {"id": block["id"], "type": "function", "function": function}


def _returned(place: str, block: dict[str, Any], called: dict[str, str]) -> dict[str, Any]:
    """What a call returned; of one that failed, its error."""
    name = called.get(block["tool_use_id"])
    if name is None:
        raise _wrong(f"{place}.tool_use_id", "no tool_use block before it has this id")
    text = texts(f"{place}.content", block.get("content") or "")
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block["tool_use_id"], "name": name, "content": text}


# ---- what a block has ---------------------------------------------------------------------------

_TYPES = {"text": str, "id": str, "name": str, "input": dict, "tool_use_id": str, "thinking": str}
_WORDS = {str: "a text", dict: "an object"}


def _checked(place: str, given: dict[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """A block without what says nothing; ApiError if it is none of these kinds."""
    block = {key: value for key, value in given.items() if value is not None}
    kind = block.get("type")
    if kind not in kinds:
        shown, allowed = reprlib.repr(kind), " or ".join(kinds)
        raise _wrong(f"{place}.type", f"{shown}; models here read {allowed} blocks here", place)
    unknown = [name for name in block if name not in _FIELDS[kind] | _ALWAYS]
    if unknown:
        raise _wrong(place, f"this server knows no field {unknown[0][:_SHOWN]!r} of {kind}")
    for name in _FIELDS[kind] & _TYPES.keys():
        if not isinstance(block.get(name), _TYPES[name]):
            raise _wrong(f"{place}.{name}", f"expected {_WORDS[_TYPES[name]]}")
    content = block.get("content", "")
    parts = content if isinstance(content, list) else []
    if not isinstance(content, (str, list)) or not all(isinstance(one, dict) for one in parts):
        raise _wrong(f"{place}.content", "expected a text or blocks of text")
    return block


def _wrong(place: str, words: str, param: str | None = None) -> ApiError:
    return ApiError(400, f"{place}: {words}", param=param or place)
