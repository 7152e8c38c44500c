"""`/v1/responses`: OpenAI's newer API, for texts. Nothing is stored: every request tells all."""

from __future__ import annotations

import json
import reprlib
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from trilobit.engine.event import Completion
from trilobit.sampling import SamplingParams
from trilobit.serve.answer import Answer, ask
from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.fields import Effort, Harmless, thinking
from trilobit.serve.service import service_of
from trilobit.serve.sse import STREAMED, Events, event

router = APIRouter()
_TEXTS = ("input_text", "output_text")


class Item(Body):
    """A message; id and status are those of an answer that is sent back."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class StreamOptions(Body):
    """include_obfuscation: padding against listeners; here, chunks are as long as text."""

    include_obfuscation: bool = False


class Form(Body):
    """Of the answer."""

    type: Literal["text"]


class Text(Body):
    """How the answer is written."""

    format: Form | None = None


class Reasoning(Body):
    """How much to think before."""

    effort: Effort | None = None
    summary: str | None = Field(default=None, description="Not used.")


class ResponsesBody(Harmless):
    """What is to be answered."""

    model: str | None = Field(default=None, description="Default: the server's first model.")
    input: str | list[Item] = Field(min_length=1)
    instructions: str | None = Field(default=None, description="A system prompt in front.")
    max_output_tokens: int | None = Field(
        default=None, ge=1, description="Default: until the context is full."
    )
    temperature: float = 1.0
    top_p: float = 1.0
    reasoning: Reasoning | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    text: Text | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: list[Literal["reasoning.encrypted_content"]] = Field(
        default=[], description="Not used: there is no reasoning."
    )
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="Not used.")
    tools: list[dict[str, Any]] = Field(default=[], description="None may be given yet.")

    def messages(self) -> list[dict[str, Any]]:
        """As the model's template reads them; ApiError for what is no text."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        told = [
            {
                "role": "system" if one.role == "developer" else one.role,
                "content": _text(f"input.{number}.content", one.content),
            }
            for number, one in enumerate(self.input)
        ]
        return first + told


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


@router.post("/v1/responses", responses=STREAMED)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """Answer messages, at once or as a stream of events."""
    if body.tools:
        raise ApiError(400, "tools: are not served here yet; leave them out", param="tools")
    params = SamplingParams(
        max_tokens=body.max_output_tokens or (1 << 31) - 1,
        temperature=body.temperature,
        top_p=body.top_p,
    )
    answer = await ask(
        request,
        model=body.model,
        messages=body.messages(),
        thinking=thinking(body.reasoning.effort if body.reasoning else None),
        params=params,
    )
    told = _Told(answer, body)
    if body.stream:
        keep_alive_s = service_of(request).settings.keep_alive_s
        return Events(told.events(), keep_alive_s=keep_alive_s, failed=told.failed)
    [done] = await answer.complete()
    # As ASCII: what was sent and is told again may hold what UTF-8 cannot.
    return Response(json.dumps(told.whole(done)), media_type="application/json")


class _Told:
    """An answer as this API tells it: a response with one message of one part."""

    def __init__(self, answer: Answer, body: ResponsesBody) -> None:
        self._answer, self._body = answer, body
        self._count = 0  # events
        self._place = {"item_id": f"msg_{answer.id}", "output_index": 0, "content_index": 0}

    def whole(self, done: Completion) -> dict[str, Any]:
        """The response in the end."""
        full = done.finish_reason == "length"
        status = "incomplete" if full else "completed"
        output = len(done.token_ids)
        return self._response(status, [self._message(status, [_part(done.text)])]) | {
            "incomplete_details": {"reason": "max_output_tokens"} if full else None,
            "usage": {
                "input_tokens": done.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": done.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": done.prompt_tokens + output,
            },
        }

    async def events(self) -> AsyncIterator[bytes]:
        """The response as it comes."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        item = self._message("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", part=_part(""), **self._place)
        async for _, new in self._answer:
            if new.text:
                text = {"delta": new.text, "logprobs": []} | self._place
                yield self._event("response.output_text.delta", **text)
        [done] = self._answer.completions
        whole = self.whole(done)
        text = {"text": done.text, "logprobs": []} | self._place
        yield self._event("response.output_text.done", **text)
        yield self._event("response.content_part.done", part=_part(done.text), **self._place)
        [item] = whole["output"]
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: ApiError) -> bytes:
        """The last event of what cannot be gone on with."""
        fault = {"code": "server_error", "message": error.message}
        return self._event("response.failed", response=self._response("failed", [], fault))

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._count
        self._count += 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    def _message(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._place["item_id"],
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": parts,
        }

    def _response(
        self, status: str, output: list[dict[str, Any]], error: dict[str, str] | None = None
    ) -> dict[str, Any]:
        body, answer = self._body, self._answer
        return {
            "id": f"resp_{answer.id}",
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "error": error,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "seed": answer.seed,
            "store": False,  # whatever was asked for
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "usage": None,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
