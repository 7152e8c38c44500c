"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from trilobit.engine.event import Completion
from trilobit.sampling import SamplingParams
from trilobit.serve.answer import Answer, ask
from trilobit.serve.anthropic.conversation import Conversation
from trilobit.serve.errors import body_of
from trilobit.serve.limits import exits
from trilobit.serve.service import service_of
from trilobit.serve.sse import STREAMED, Events, event

router = APIRouter()
_PATH = "/v1/messages"


class MessagesBody(Conversation):
    """A conversation to be answered."""

    max_tokens: int = Field(ge=1)
    stream: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(default=0, ge=0, description="0 is off.")
    stop_sequences: list[str] = Field(default=[])
    metadata: dict[str, Any] | None = Field(default=None, description="Not used.")
    service_tier: Literal["auto", "standard_only"] | None = Field(
        default=None, description="Not used."
    )

    def params(self) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences,
        )


@router.post(_PATH, responses=STREAMED)
async def messages(body: MessagesBody, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of events."""
    settings = service_of(request).settings
    answer = await ask(
        request,
        model=body.model,
        messages=body.chat(billing_header=settings.billing_header),
        params=body.params(),
    )
    if body.stream:
        return Events(
            _events(answer),
            keep_alive_s=settings.keep_alive_s,
            alive=_event("ping"),
            failed=lambda error: event(body_of(error, _PATH), "error"),
        )
    [done] = await answer.complete()
    content = [{"type": "text", "text": done.text}]
    return JSONResponse(_message(answer, content) | _end(done) | {"usage": _usage(done)})


@router.post(f"{_PATH}/count_tokens")
async def count_tokens(body: Conversation, request: Request) -> dict[str, int]:
    """How many tokens a conversation has, as the model reads it."""
    service = service_of(request)
    chat = body.chat(billing_header=service.settings.billing_header)
    llm = await exits(request).enter_async_context(service.host.llm(body.model))
    return {"input_tokens": len(await asyncio.to_thread(llm.chat_ids, chat))}


def _message(answer: Answer, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
    }


def _end(done: Completion) -> dict[str, Any]:
    """Why it ended."""
    stopped = isinstance(done.stop_reason, str)
    ended = "stop_sequence" if stopped else "end_turn"
    return {
        "stop_reason": "max_tokens" if done.finish_reason == "length" else ended,
        "stop_sequence": done.stop_reason if stopped else None,
    }


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


async def _events(answer: Answer) -> AsyncIterator[bytes]:
    # What the cache had is known later: the last counts are the true ones.
    begun = {
        "input_tokens": len(answer.prompts[0]),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    open_end = {"stop_reason": None, "stop_sequence": None, "usage": begun}
    yield _event("message_start", message=_message(answer, []) | open_end)
    yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    async for _, new in answer:
        if new.text:
            delta = {"type": "text_delta", "text": new.text}
            yield _event("content_block_delta", index=0, delta=delta)
    yield _event("content_block_stop", index=0)
    [done] = answer.completions
    yield _event("message_delta", delta=_end(done), usage=_usage(done))
    yield _event("message_stop")
