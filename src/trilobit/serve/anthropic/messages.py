"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from trilobit.engine.event import Completion
from trilobit.sampling import SamplingParams
from trilobit.serve.answer import Answer, ask
from trilobit.serve.anthropic.conversation import Conversation
from trilobit.serve.anthropic.tools import tool_use
from trilobit.serve.body import Json
from trilobit.serve.errors import body_of
from trilobit.serve.limits import exits
from trilobit.serve.service import service_of
from trilobit.serve.sse import STREAMED, Events, event
from trilobit.text.reply import Part, Reply
from trilobit.text.tools import ToolCall

router = APIRouter()
_PATH = "/v1/messages"


class MessagesBody(Conversation):
    """A conversation to be answered."""

    max_tokens: int = Field(ge=1)
    stream: bool = False
    temperature: float | None = Field(default=None, description="Default: the model's, else 1.")
    top_p: float | None = Field(default=None, description="Default: the model's, else 1.")
    top_k: int | None = Field(
        default=None, ge=0, description="0 is off. Default: the model's, else 0."
    )
    stop_sequences: list[str] = Field(default=[])
    metadata: dict[str, Any] | None = Field(default=None, description="Not used.")
    service_tier: Literal["auto", "standard_only"] | None = Field(
        default=None, description="Not used."
    )

    def params(self) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        form = self.output_config.format if self.output_config else None
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
            json_schema=form.schema_ if form else None,
        )


@router.post(_PATH, responses=STREAMED)
async def messages(body: MessagesBody, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of events."""
    settings = service_of(request).settings
    toolbox = body.toolbox()
    answer = await ask(
        request,
        model=body.model,
        messages=body.chat(billing_header=settings.billing_header),
        toolbox=toolbox,
        params=body.params(),
    )
    thoughts = body.thinking is not None and body.thinking.type == "adaptive"
    reply = answer.llm.reply(answer.prompts[0], toolbox, reasoning=thoughts, salt=answer.id)
    if body.stream:
        return Events(
            _events(answer, reply, thoughts=thoughts),
            keep_alive_s=settings.keep_alive_s,
            alive=_event("ping"),
            failed=lambda error: event(body_of(error, _PATH), "error"),
        )
    [done] = await answer.complete()
    content = _content(Part.joined((reply.add(done.text), reply.finish())), thoughts=thoughts)
    return Json(_message(answer, content) | _end(done, reply) | {"usage": _usage(done)})


@router.post(f"{_PATH}/count_tokens")
async def count_tokens(body: Conversation, request: Request) -> dict[str, int]:
    """How many tokens a conversation has, as the model reads it."""
    service = service_of(request)
    chat = body.chat(billing_header=service.settings.billing_header)
    name = await service.host.name_for_chat(body.model)
    llm = await exits(request).enter_async_context(service.host.llm(name))
    return {"input_tokens": len(await asyncio.to_thread(llm.chat_ids, chat, body.toolbox()))}


def _message(answer: Answer, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
    }


def _content(part: Part, *, thoughts: bool) -> list[dict[str, Any]]:
    """The blocks of an answer. thoughts: with what was thought."""
    content = []
    if thoughts and part.thought:
        content.append(_begun("thinking") | {"thinking": part.thought})
    if part.text or not (content or part.calls):
        content.append(_begun("text") | {"text": part.text})
    return content + [tool_use(call) for call in part.calls]


def _begun(kind: str) -> dict[str, Any]:
    """A block of text or thought, before there is anything in it. Nobody has to sign a thought."""
    return {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})


def _end(done: Completion, reply: Reply) -> dict[str, Any]:
    """Why it ended."""
    stop = done.stop_reason if isinstance(done.stop_reason, str) else None
    ended = "tool_use" if reply.called else "end_turn"
    if done.finish_reason == "length":
        ended = "max_tokens"
    return {"stop_reason": "stop_sequence" if stop is not None else ended, "stop_sequence": stop}


def _usage(done: Completion) -> dict[str, int]:
    """Anthropic's `input_tokens` are those that the cache had not."""
    return {
        "input_tokens": done.prompt_tokens - done.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": done.cached_tokens,
        "output_tokens": len(done.token_ids),
    }


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind} | fields, kind)


async def _events(answer: Answer, reply: Reply, *, thoughts: bool) -> AsyncIterator[bytes]:
    # What the cache had is known later: the last counts are the true ones.
    begun = {
        "input_tokens": len(answer.prompts[0]),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    open_end = {"stop_reason": None, "stop_sequence": None, "usage": begun}
    yield _event("message_start", message=_message(answer, []) | open_end)
    blocks = _Blocks()
    async for _, new in answer:
        parts = [reply.add(new.text)]
        if new.finish_reason:
            parts.append(reply.finish())
        for part in parts:
            if thoughts and part.thought:
                yield blocks.add("thinking", part.thought)
            if part.text:
                yield blocks.add("text", part.text)
            for call in part.calls:
                yield blocks.call(call)
    yield blocks.end()
    [done] = answer.completions
    yield _event("message_delta", delta=_end(done, reply), usage=_usage(done))
    yield _event("message_stop")


class _Blocks:
    """Blocks of a stream: one is open at a time, and an answer has one at least."""

    def __init__(self) -> None:
        self._index, self._open = -1, ""

    def add(self, kind: str, text: str) -> bytes:
        """More of a text or a thought, in a new block where another kind was open."""
        begin = b"" if kind == self._open else self._begin(_begun(kind))
        return begin + self._delta({"type": f"{kind}_delta", kind: text})

    def call(self, call: ToolCall) -> bytes:
        """A call, whole."""
        block = tool_use(call)
        given = json.dumps(block["input"], ensure_ascii=False)
        begin = self._begin(block | {"input": {}})
        return begin + self._delta({"type": "input_json_delta", "partial_json": given})

    def end(self) -> bytes:
        """No more of them."""
        begin = b"" if self._open else self._begin(_begun("text"))
        return begin + self._stop()

    def _begin(self, block: dict[str, Any]) -> bytes:
        stop = self._stop() if self._open else b""
        self._index, self._open = self._index + 1, block["type"]
        return stop + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        return _event("content_block_stop", index=self._index)
