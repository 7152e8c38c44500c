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
from trilobit.serve.openai.fields import Effort, Sampling, head, thinking, toolbox_of, usage
from trilobit.serve.openai.logprobs import content_logprobs
from trilobit.serve.service import service_of
from trilobit.serve.sse import DONE, STREAMED, Events, event
from trilobit.text.reply import Part, Reply
from trilobit.text.tools import Toolbox, ToolCall

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
    reasoning_effort: Effort | None = Field(
        default=None,
        description="Models that can leave thinking out do so for none and minimal; not used else.",
    )
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    include_reasoning: bool = Field(
        default=False,
        description="Tell what the model thinks apart, as reasoning_content; with tools it always "
        "is.",
    )

    def toolbox(self) -> Toolbox | None:
        """What may be called; RequestError for what is no tool."""
        return toolbox_of(self.tools, self.tool_choice, self.parallel_tool_calls)


@router.post("/v1/chat/completions", responses=STREAMED)
async def chat_completions(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, at once or as a stream of chunks."""
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
    toolbox = body.toolbox()
    most = body.max_completion_tokens or body.max_tokens or (1 << 31) - 1
    answer = await ask(
        request,
        model=body.model,
        messages=[_message(one) for one in body.messages],
        toolbox=toolbox,
        thinking=thinking(body.reasoning_effort),
        params=body.params(max_tokens=most, logprobs=body.top_logprobs if body.logprobs else None),
        n=body.n,
        cache_salt=body.cache_salt,
    )
    replies = [
        answer.llm.reply(
            answer.prompts[0],
            toolbox,
            reasoning=body.include_reasoning,
            salt=f"{answer.id}/{index}",
        )
        for index in range(answer.n)
    ]
    if body.stream:
        keep_alive_s = service_of(request).settings.keep_alive_s
        return Events(_chunks(answer, body, replies), keep_alive_s=keep_alive_s)
    done = await answer.complete()
    return Json(
        head(answer, prefix="chatcmpl-", kind="chat.completion")
        | {
            "choices": [
                _choice(answer, body, index, one, reply)
                for index, (one, reply) in enumerate(zip(done, replies, strict=True))
            ],
            "usage": usage(answer),
        }
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Templates know the older name of OpenAI's "developer"."""
    return message | {"role": "system"} if message.get("role") == "developer" else message


def _choice(
    answer: Answer, body: ChatBody, index: int, done: Completion, reply: Reply
) -> dict[str, Any]:
    part = Part.joined((reply.add(done.text), reply.finish()))
    message: dict[str, Any] = {"role": "assistant", "content": part.text, "refusal": None}
    if part.thought:
        message["reasoning_content"] = part.thought
    if part.calls:
        calls = [_call(call) for call in part.calls]
        message |= {"content": part.text or None, "tool_calls": calls}
    with_ids = {"token_ids": done.token_ids} if body.return_token_ids else {}
    return with_ids | {
        "index": index,
        "message": message,
        "logprobs": content_logprobs(answer.llm, done.logprobs),
        "finish_reason": _finish_reason(done.finish_reason, reply),
    }


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _finish_reason(reason: str, reply: Reply) -> str:
    return "tool_calls" if reason == "stop" and reply.called else reason


async def _chunks(answer: Answer, body: ChatBody, replies: list[Reply]) -> AsyncIterator[bytes]:
    first = head(answer, prefix="chatcmpl-", kind="chat.completion.chunk")
    extra = {"usage": None} if body.wants_usage else {}

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more
        return event(first | {"choices": [choice]} | extra)

    for index in range(answer.n):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, new in answer:
        reply = replies[index]
        part = Part.joined([reply.add(new.text), *([reply.finish()] if new.finish_reason else [])])
        if part.thought:
            yield chunk(index, {"reasoning_content": part.thought})
        with_ids = {"token_ids": new.token_ids} if body.return_token_ids else {}
        if part.text or new.logprobs or with_ids:
            logprobs = content_logprobs(answer.llm, new.logprobs)
            yield chunk(index, {"content": part.text}, logprobs=logprobs, **with_ids)
        for number, call in enumerate(part.calls, reply.called - len(part.calls)):
            yield chunk(index, {"tool_calls": [{"index": number} | _call(call)]})
        if new.finish_reason:
            yield chunk(index, {}, finish_reason=_finish_reason(new.finish_reason, reply))
    if body.wants_usage:
        yield event(first | {"choices": [], "usage": usage(answer)})
    yield DONE
