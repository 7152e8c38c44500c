"""A conversation as Anthropic's API sends it, and as a model's template reads it.

The system prompt stands beside the messages; contents are texts or lists of blocks. Agents put a
line in front of the system prompt that changes with every request,

    x-anthropic-billing-header: cc_version=...; cch=...;

and means nothing to a model. It is dropped, as nothing behind it would ever come from the prefix
cache otherwise; `trilobit serve --keep-billing-header` leaves it where it is.
"""

from __future__ import annotations

import reprlib
from typing import Any, Literal

from pydantic import Field

from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError

_BILLING = "x-anthropic-billing-header:"
_OF_TEXT = {"type", "text", "cache_control", "citations"}  # fields of a text block
_SHOWN = 40  # characters of a name

Content = str | list[dict[str, Any]]


class Turn(Body):
    """What one side said."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Thinking(Body):
    """Adaptive: as the model sees fit, and these see none."""

    type: Literal["disabled", "adaptive"]
    display: str | None = Field(default=None, description="Not used.")


class Output(Body):
    """How the answer is made."""

    effort: str | None = Field(default=None, description="Not used.")


class Conversation(Body):
    """A system prompt and messages."""

    model: str | None = Field(default=None, description="Default: the server's first model.")
    system: Content = ""
    messages: list[Turn] = Field(min_length=1)
    tools: list[dict[str, Any]] = Field(default=[], description="None may be given yet.")
    thinking: Thinking | None = None
    output_config: Output | None = None
    cache_control: dict[str, Any] | None = Field(
        default=None, description="Not used: whatever was computed before is cached."
    )
    speed: Literal["standard"] | None = None

    def chat(self, *, billing_header: bool) -> list[dict[str, str]]:
        """As messages with one text each, the system prompt first; neighbours of a role are one.

        billing_header: keep that line. Raises ApiError for what is no text.
        """
        if self.tools:
            raise ApiError(400, "tools: are not served here yet; leave them out", param="tools")
        if self.messages[-1].role == "assistant":
            raise ApiError(
                400,
                "messages: the last one is the assistant's; a reply cannot be begun here, end with "
                "the user's",
                param="messages",
            )
        system = self.system if isinstance(self.system, str) else _texts("system", self.system)
        if not billing_header:
            system = _without_billing(system)
        turns = [("system", system)] if system else []
        for number, turn in enumerate(self.messages):
            text = _texts(f"messages.{number}.content", turn.content)
            if turns and turns[-1][0] == turn.role:
                text = f"{turns.pop()[1]}\n{text}"
            turns.append((turn.role, text))
        return [{"role": role, "content": text} for role, text in turns]


def _texts(place: str, content: Content) -> str:
    """A content as one text; every block is a line of its own."""
    if isinstance(content, str):
        return content
    return "\n".join(_text(f"{place}.{number}", block) for number, block in enumerate(content))


def _text(place: str, block: dict[str, Any]) -> str:
    kind, text = block.get("type"), block.get("text")
    if kind != "text":
        shown = reprlib.repr(kind)
        raise ApiError(
            400, f"{place}.type: {shown}; models here read only text blocks", param=place
        )
    if not isinstance(text, str):
        raise ApiError(400, f"{place}.text: expected a text", param=place)
    unknown = [name for name in block if name not in _OF_TEXT and block[name] is not None]
    if unknown:
        raise ApiError(
            400, f"{place}: this server knows no field {unknown[0][:_SHOWN]!r} of text", param=place
        )
    return text


def _without_billing(system: str) -> str:
    return system.partition("\n")[2] if system.startswith(_BILLING) else system
