"""A conversation as Anthropic's API sends it, and as a model's template reads it.

The system prompt stands beside the messages; contents are texts or lists of blocks. Agents put a
line in front of the system prompt that changes with every request,

    x-anthropic-billing-header: cc_version=...; cch=...;

and means nothing to a model. It is dropped, as nothing behind it would ever come from the prefix
cache otherwise; `trilobit serve --keep-billing-header` leaves it where it is.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trilobit.serve.anthropic.blocks import Content, messages, texts
from trilobit.serve.anthropic.tools import Choice, Tool, toolbox_of
from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.text.tools import Toolbox

_BILLING = "x-anthropic-billing-header:"


class Turn(Body):
    """What one side said."""

    role: Literal["user", "assistant", "system"]
    content: Content


class Thinking(Body):
    """Adaptive: as the model sees fit; what it thinks is told in blocks of its own."""

    type: Literal["disabled", "adaptive"]
    display: str | None = Field(default=None, description="Not used.")


class Form(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class Output(Body):
    """How the answer is made."""

    format: Form | None = None
    effort: str | None = Field(default=None, description="Not used.")


class Conversation(Body):
    """A system prompt and messages."""

    model: str | None = Field(default=None, description="Default: the first one for chats.")
    system: Content = ""
    messages: list[Turn] = Field(min_length=1)
    tools: list[Tool] = Field(default=[])
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: Output | None = None
    cache_control: dict[str, Any] | None = Field(
        default=None, description="Not used: whatever was computed before is cached."
    )
    speed: Literal["standard"] | None = None

    def toolbox(self) -> Toolbox | None:
        """What may be called; RequestError for what is no tool."""
        return toolbox_of(self.tools, self.tool_choice)

    def chat(self, *, billing_header: bool) -> list[dict[str, Any]]:
        """As OpenAI's messages, the system prompt first; neighbours of a role are one.

        billing_header: keep that line. Raises ApiError for what no model here reads.
        """
        if self.messages[-1].role == "assistant":
            raise ApiError(
                400,
                "messages: the last one is the assistant's; a reply cannot be begun here, end with "
                "the user's",
                param="messages",
            )
        system = texts("system", self.system)
        if not billing_header:
            system = _without_billing(system)
        chat: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        called: dict[str, str] = {}
        for number, turn in enumerate(self.messages):
            place = f"messages.{number}.content"
            for message in messages(place, turn.role, turn.content, called):
                if chat and _is_text(chat[-1]) and _is_text(message, chat[-1]["role"]):
                    message = message | {
                        "content": f"{chat.pop()['content']}\n{message['content']}"
                    }
                chat.append(message)
        return chat


def _is_text(message: dict[str, Any], role: str | None = None) -> bool:
    """Whether a message is text and no more, of a role."""
    return message.keys() == {"role", "content"} and role in (None, message["role"])


def _without_billing(system: str) -> str:
    return system.partition("\n")[2] if system.startswith(_BILLING) else system
