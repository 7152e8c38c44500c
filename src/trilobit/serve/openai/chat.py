"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from trilobit.engine.event import Completion
from trilobit.serve.answer import Answer, ask
from trilobit.serve.body import Json
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.fields import Sampling, head, usage
from trilobit.serve.openai.logprobs import content_logprobs
from trilobit.serve.service import service_of
from trilobit.serve.sse import DONE, STREAMED, Events, event

router = APIRouter()
_MOST_LOGPROBS = 20


class ChatBody(Sampling):
    """A conversation to be answered."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="Default: until the context is full."
    )
    max_tokens: int | None = Field(default=None, ge=1, description="The older name.")
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=_MOST_LOGPROBS)


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of chunks."""
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
    most = body.max_completion_tokens or body.max_tokens or (1 << 31) - 1
    answer = await ask(
        request,
        model=body.model,
        messages=[_message(one) for one in body.messages],
        params=body.params(max_tokens=most, logprobs=body.top_logprobs if body.logprobs else None),
        n=body.n,
        cache_salt=body.cache_salt,
    )
    if body.stream:
        keep_alive_s = service_of(request).settings.keep_alive_s
        return Events(_chunks(answer, body), keep_alive_s=keep_alive_s)
    done = await answer.complete()
    return Json(
        head(answer, prefix="chatcmpl-", kind="chat.completion")
        | {
            "choices": [_choice(answer, body, index, one) for index, one in enumerate(done)],
            "usage": usage(answer),
        }
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Templates know the older name of OpenAI's "developer"."""
    return message | {"role": "system"} if message.get("role") == "developer" else message


def _choice(answer: Answer, body: ChatBody, index: int, done: Completion) -> dict[str, Any]:
    with_ids = {"token_ids": done.token_ids} if body.return_token_ids else {}
    return with_ids | {
        "index": index,
        "message": {"role": "assistant", "content": done.text, "refusal": None},
        "logprobs": content_logprobs(answer.llm, done.logprobs),
        "finish_reason": done.finish_reason,
    }


async def _chunks(answer: Answer, body: ChatBody) -> AsyncIterator[bytes]:
    first = head(answer, prefix="chatcmpl-", kind="chat.completion.chunk")
    extra = {"usage": None} if body.wants_usage else {}

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more
        return event(first | {"choices": [choice]} | extra)

    for index in range(answer.n):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, new in answer:
        with_ids = {"token_ids": new.token_ids} if body.return_token_ids else {}
        if new.text or new.logprobs or with_ids:
            logprobs = content_logprobs(answer.llm, new.logprobs)
            yield chunk(index, {"content": new.text}, logprobs=logprobs, **with_ids)
        if new.finish_reason:
            yield chunk(index, {}, finish_reason=new.finish_reason)
    if body.wants_usage:
        yield event(first | {"choices": [], "usage": usage(answer)})
    yield DONE
