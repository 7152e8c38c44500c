"""Functions that a model may call, as Anthropic's API sends them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.text.tools import Toolbox, ToolCall

# Anthropic's choices, and OpenAI's
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Tool(Body):
    """A function of the client's own; those that Anthropic's servers run are not here."""

    name: str
    description: str = ""
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    strict: bool | None = Field(
        default=None, description="Not used: a call that must come always fits its schema."
    )
    cache_control: dict[str, Any] | None = Field(default=None, description="Not used.")
    eager_input_streaming: bool | None = Field(default=None, description="Not used.")
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] = Field(default=[])

    def definition(self) -> dict[str, Any]:
        """The same in OpenAI's words."""
        told = {"description": self.description} if self.description else {}
        function = {"name": self.name, **told, "parameters": self.input_schema}
        return {"type": "function", "function": function}


class Choice(Body):
    """Whether something must be called. name: what, with "tool"."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


def toolbox_of(tools: list[Tool], choice: Choice | None) -> Toolbox | None:
    """What may be called; ApiError or RequestError for what cannot be."""
    choice = choice or Choice(type="auto")
    if (choice.type == "tool") != (choice.name is not None):
        raise ApiError(
            400, "tool_choice: type 'tool' needs a name, and no other has one", param="tool_choice"
        )
    if not tools:
        if choice.type in ("any", "tool"):
            raise ApiError(400, "tool_choice: needs tools", param="tool_choice")
        return None
    wanted: str | dict[str, Any] = _CHOICES.get(choice.type, "")
    if choice.name is not None:
        wanted = {"type": "function", "function": {"name": choice.name}}
    definitions = [tool.definition() for tool in tools]
    return Toolbox(definitions, wanted, not choice.disable_parallel_tool_use)


def tool_use(call: ToolCall) -> dict[str, Any]:
    """A call as a block."""
    return {
        "type": "tool_use",
        "id": f"toolu_{call.id.removeprefix('call_')}",
        "name": call.name,
        "input": call.object,
    }
