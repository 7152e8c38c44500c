"""What `/v1/responses` takes: items, functions and forms, and what they are to a model."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from trilobit.sampling import SamplingParams
from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.fields import Effort, Harmless, toolbox_of
from trilobit.serve.openai.structured import ANY_OBJECT
from trilobit.text.tools import Toolbox

_TEXTS = ("input_text", "output_text")


class Sent(Body):
    """An item; what an answer had beside its content may be sent back."""

    id: str | None = None
    status: str | None = None


class MessageItem(Sent):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    phase: str | None = None


class CallItem(Sent):
    """A function that the model called."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Sent):
    """What a call has returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, Any]]


class ThoughtItem(Sent):
    """What the model thought before: templates leave that out, and so it is not read."""

    type: Literal["reasoning"]
    summary: list[dict[str, Any]] = Field(default=[])
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


def _type(item: Any) -> str:
    found = item.get("type", "message") if isinstance(item, dict) else item.type
    return found if isinstance(found, str) else ""


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ThoughtItem, Tag("reasoning")],
    Discriminator(_type),
]


class Function(Body):
    """One that may be called. A call that must come fits its parameters, strict or not."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> dict[str, Any]:
        """As chats have it."""
        told = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {
            "type": "function",
            "function": {key: value for key, value in told.items() if value is not None},
        }


class NamedFunction(Body):
    """The one that must be called."""

    type: Literal["function"]
    name: str


class StreamOptions(Body):
    """include_obfuscation: padding against listeners; here, chunks are as long as text."""

    include_obfuscation: bool = False


class Form(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaForm(Body):
    """JSON that fits a schema. It is always followed, strict or not."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class Text(Body):
    """How the answer is written."""

    format: Form | SchemaForm | None = Field(default=None, discriminator="type")


class Reasoning(Body):
    """How much to think before."""

    effort: Effort | None = None
    summary: str | None = Field(default=None, description="Not used.")


class ResponsesBody(Harmless):
    """What is to be answered."""

    model: str | None = Field(default=None, description="Default: the first one for chats.")
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = Field(default=None, description="A system prompt in front.")
    max_output_tokens: int | None = Field(
        default=None, ge=1, description="Default: until the context is full."
    )
    temperature: float | None = Field(default=None, description="Default: the model's, else 1.")
    top_p: float | None = Field(default=None, description="Default: the model's, else 1.")
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = Field(default=None, ge=0, lt=1 << 64)
    cache_salt: str | None = Field(
        default=None, description="Only requests with the same one share what is cached."
    )
    reasoning: Reasoning | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    text: Text | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: list[Literal["reasoning.encrypted_content"]] = Field(
        default=[], description="Not used: thoughts are told as they are."
    )
    tools: list[Function] = Field(default=[])
    tool_choice: Literal["auto", "none", "required"] | NamedFunction = "auto"
    parallel_tool_calls: bool = True

    def toolbox(self) -> Toolbox | None:
        """What may be called; RequestError for what is no function."""
        choice: str | dict[str, Any] = (
            {"function": {"name": self.tool_choice.name}}
            if isinstance(self.tool_choice, NamedFunction)
            else self.tool_choice
        )
        return toolbox_of([one.tool() for one in self.tools], choice, self.parallel_tool_calls)

    def params(self) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        form = self.text.format if self.text else None
        schema = form.schema_ if isinstance(form, SchemaForm) else None
        if form is not None and form.type == "json_object":
            schema = ANY_OBJECT
        return SamplingParams(
            max_tokens=self.max_output_tokens or (1 << 31) - 1,
            temperature=self.temperature,
            top_p=self.top_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
            json_schema=schema,
        )

    def messages(self) -> list[dict[str, Any]]:
        """As the model's template reads them; ApiError for what is no text."""
        told: list[dict[str, Any]] = []
        if self.instructions:
            told.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*told, {"role": "user", "content": self.input}]
        called: set[str] = set()
        for number, item in enumerate(self.input):
            place = f"input.{number}"
            if isinstance(item, MessageItem):
                role = "system" if item.role == "developer" else item.role
                told.append({"role": role, "content": _text(f"{place}.content", item.content)})
            elif isinstance(item, CallItem):
                called.add(item.call_id)
                if not told or told[-1]["role"] != "assistant":
                    told.append({"role": "assistant", "content": ""})
                told[-1].setdefault("tool_calls", []).append(_call(item))
            elif isinstance(item, ResultItem):
                if item.call_id not in called:
                    raise ApiError(400, f"{place}.call_id: no call before has this id", param=place)
                text = _text(f"{place}.output", item.output)
                told.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        if not told:
            raise ApiError(400, "input: has nothing to be answered", param="input")
        return told


def _call(item: CallItem) -> dict[str, Any]:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _text(place: str, content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    for number, part in enumerate(content):
        if part.get("type") not in _TEXTS or not isinstance(part.get("text"), str):
            kind = reprlib.repr(part.get("type"))
            raise ApiError(
                400,
                f"{place}.{number}: {kind}; models here read only text: "
                "{'type': 'input_text', 'text': ...}",
                param=place,
            )
    return "".join(part["text"] for part in content)
