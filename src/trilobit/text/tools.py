"""Functions that a model may call: what a chat tells it of them, and what a call must look like.

Templates of models that were taught to call functions take their definitions as `tools`. To others
they are told in a system message, in the words of Qwen's templates, which are the most common.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trilobit.errors import RequestError
from trilobit.schema import as_json
from trilobit.text.grammar import JSON_OPTIONS

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_TOOLS = 128
_MOST_CALLS = 8  # in one answer, where calls are asked for
BEGIN, END = "<tool_call>", "</tool_call>"
# "marked": calls between the marks, one object each (Hermes, Qwen), or a list of them (Falcon 3);
# "bare": the answer is the call (Llama 3).
Form = Literal["marked", "list", "bare"]
_TOLD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function to be called. arguments: JSON, as the model wrote it. id: what the answer to it
    names in `tool_call_id`.
    """

    id: str
    name: str
    arguments: str

    @property
    def object(self) -> dict[str, Any]:
        """The arguments as an object; what a model wrote that is none, as `arguments` of one."""
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            value = self.arguments
        return value if isinstance(value, dict) else {"arguments": value}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Functions, and whether one must be called.

    tools: definitions as OpenAI has them, `{"type": "function", "function": {"name": ...,
    "description": ..., "parameters": JSON schema}}`. choice: "auto", "none", "required", or the
    name of one, as text or as OpenAI has it. parallel: whether several may be called at once.
    Raises RequestError for what is none of that.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str | Mapping[str, Any] = "auto"
    parallel: bool = True
    named: str | None = field(init=False, default=None)  # the function that must be called

    def __post_init__(self) -> None:
        if isinstance(self.tools, (str, bytes)) or not isinstance(self.tools, Sequence):
            raise RequestError("tools: expected a list of {'type': 'function', 'function': ...}")
        if not 1 <= len(self.tools) <= _MOST_TOOLS:
            raise RequestError(f"tools: {len(self.tools)} are given; expected 1 to {_MOST_TOOLS}")
        tools = [_checked(tool) for tool in json.loads(as_json("tools", list(self.tools)))]
        object.__setattr__(self, "tools", tools)
        if len(set(self.names)) < len(tools):
            raise RequestError("tools: two functions have the same name")
        if not isinstance(self.parallel, bool):
            raise RequestError("parallel_tool_calls: expected True or False")
        named = _named(self.choice)
        if named is not None and named not in self.names:
            raise RequestError(f"tool_choice: no tool is named {named!r:.80}")
        object.__setattr__(self, "named", named)

    @property
    def names(self) -> list[str]:
        """Names of the functions."""
        return [tool["function"]["name"] for tool in self.tools]

    @property
    def is_open(self) -> bool:
        """Whether anything may be called."""
        return self.choice != "none"

    @property
    def must_call(self) -> bool:
        """Whether something must be called."""
        return self.named is not None or self.choice == "required"

    def grammar(self, form: Form, *, thoughts: bool = False, begun: bool = False) -> str:
        """What an answer that must call looks like, in Lark; arguments fit their schemas.

        thoughts: it may think before; begun: it is thinking already.
        """
        chosen = [t for t in self.tools if self.named in (None, t["function"]["name"])]
        calls = " | ".join(f"call_{number}" for number in range(len(chosen)))
        more = f"{{0,{_MOST_CALLS - 1}}}"
        lines_more = f'("\\n" mark){more}' if self.parallel else ""
        list_more = f'(", " call){more}' if self.parallel else ""
        rules = {
            "marked": f'mark {lines_more}\nmark: "{BEGIN}\\n" call "\\n{END}"',
            "list": f'"{BEGIN}\\n[" call {list_more} "]\\n{END}"',
            "bare": "call",
        }[form]
        word = "parameters" if form == "bare" else "arguments"
        before = ("thinks " if begun else "thinks? ") if thoughts else ""
        lines = [f"start: {before}{rules}", f"call: {calls}"]
        if thoughts:
            mark = "" if begun else "<think>"
            lines += ["thinks: thought /\\n{1,3}/?", f"thought[lazy]: /{mark}(.|\\n)*<\\/think>/"]
        for number, tool in enumerate(chosen):
            function = tool["function"]
            opened = json.dumps(f'{{"name": {json.dumps(function["name"])}, "{word}": ')
            # No more than what is asked for, as small models never come to an end of it.
            bounds = {"additionalProperties": False, **function["parameters"]}
            schema = json.dumps(bounds | {"x-guidance": JSON_OPTIONS}, ensure_ascii=False)
            lines.append(f'call_{number}: {opened} %json {schema} "}}"')
        return "\n".join(lines)


def form_of(template: str | None) -> Form:
    """How the model of a chat template writes calls."""
    if template is None or not _takes_tools(template) or BEGIN in template:
        listed = template is not None and re.search(rf"{BEGIN}(\\n|\s)*\[", template)
        return "list" if listed else "marked"
    # Llama 3.1 to 3.3, and what was made of them, ask for {"name": ..., "parameters": ...}.
    return "bare" if "parameters" in template else "marked"


def told(
    messages: list[dict[str, Any]], toolbox: Toolbox | None, template: str | None
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]] | None]:
    """Messages and tools as a template takes them."""
    tools = list(toolbox.tools) if toolbox is not None and toolbox.is_open else None
    messages = [_with_objects(message) for message in messages]
    if template is not None and _takes_tools(template):
        return messages, tools
    plain = messages
    if template is None or "tool_calls" not in template:
        plain = _in_words(messages)
    if tools is not None:
        words = _TOLD.format(tools="\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
        if plain[0]["role"] == "system":
            words = f"{plain[0].get('content', '')}\n\n{words}"
            plain = plain[1:]
        plain = [{"role": "system", "content": words}, *plain]
    return plain, None


def _in_words(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a template that knows neither calls nor what they return."""
    plain: list[dict[str, Any]] = []
    answers = False  # the last message is of what calls have returned
    for message in messages:
        one = _as_text(message) if message["role"] == "tool" or "tool_calls" in message else message
        if message["role"] == "tool" and answers:
            plain[-1]["content"] += "\n" + one["content"]
        else:
            plain.append(one)
        answers = message["role"] == "tool"
    return plain


def _takes_tools(template: str) -> bool:
    return re.search(r"\btools\b", template) is not None


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments as objects: OpenAI has JSON in a text, templates write objects as JSON."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    changed = []
    for call in calls:
        # Some write a call without "function", as transformers allows.
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError(
                "messages: a tool call is no {'id': ..., 'type': 'function', 'function': {'name': "
                "..., 'arguments': ...}}"
            )
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise RequestError(
                    f"messages: arguments of the call of {function['name']!r:.80} are no JSON"
                ) from None
        whole = {**function, "arguments": arguments}
        changed.append(whole if function is call else {**call, "function": whole})
    return {**message, "tool_calls": changed}


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message of calls, or of what one has returned, for a template that knows neither."""
    content = message.get("content", "")
    if message["role"] == "tool":
        told = f"<tool_response>\n{content}\n</tool_response>"
        return {"role": "user", "content": told}
    calls = [
        f"{BEGIN}\n{json.dumps(_call_of(call.get('function', call)), ensure_ascii=False)}\n{END}"
        for call in message.get("tool_calls") or ()
    ]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([content, *calls] if content else calls or [content])}


def _call_of(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "arguments": function.get("arguments", {})}


def _checked(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type") != "function" or function is None:
        raise RequestError(
            "tools: a tool is no {'type': 'function', 'function': {'name': ..., 'parameters': ...}}"
        )
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"tools: a function is named {name!r:.80}; expected 1 to 64 of A-Z a-z 0-9 _ . -"
        )
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise RequestError(f"tools: parameters of {name!r} are no JSON schema of an object")
    return {**tool, "function": {**function, "parameters": parameters}}


def _named(given: str | Mapping[str, Any]) -> str | None:
    """The function that a choice names, if it names one."""
    if isinstance(given, str):
        return None if given in ("auto", "none", "required") else given
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise RequestError(
            "tool_choice: expected 'auto', 'none', 'required' or {'type': 'function', 'function': "
            "{'name': ...}}"
        )
    return name
