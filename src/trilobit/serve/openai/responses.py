"""`/v1/responses`: OpenAI's newer API, for texts. Nothing is stored: every request tells all."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trilobit.engine.event import Completion
from trilobit.serve.answer import Answer, ask
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.fields import thinking
from trilobit.serve.openai.response_input import ResponsesBody
from trilobit.serve.openai.response_output import Output
from trilobit.serve.service import service_of
from trilobit.serve.sse import STREAMED, Events, event
from trilobit.text.reply import Part, Reply

router = APIRouter()
_FULL = {"reason": "max_output_tokens"}


@router.post("/v1/responses", responses=STREAMED)
async def responses(body: ResponsesBody, request: Request) -> Response:
    """Answer messages, at once or as a stream of events."""
    toolbox = body.toolbox()
    answer = await ask(
        request,
        model=body.model,
        messages=body.messages(),
        toolbox=toolbox,
        thinking=thinking(body.reasoning.effort if body.reasoning else None),
        params=body.params(),
        cache_salt=body.cache_salt,
    )
    reply = answer.llm.reply(answer.prompts[0], toolbox, reasoning=True, salt=answer.id)
    told = _Told(answer, body, reply)
    if body.stream:
        keep_alive_s = service_of(request).settings.keep_alive_s
        return Events(told.events(), keep_alive_s=keep_alive_s, failed=told.failed)
    [done] = await answer.complete()
    # As ASCII: what was sent and is told again may hold what UTF-8 cannot.
    return Response(json.dumps(told.whole(done)), media_type="application/json")


class _Told:
    """An answer as this API tells it."""

    def __init__(self, answer: Answer, body: ResponsesBody, reply: Reply) -> None:
        self._answer, self._body, self._reply = answer, body, reply
        self._count = 0  # events
        self._thought: list[str] = []
        self._output = Output(answer.id, self._event)

    def whole(self, done: Completion) -> dict[str, Any]:
        """The response of what is all there."""
        for _ in self._add(done.text, last=True):
            pass
        for _ in self._output.end(_status(done)):
            pass
        return self._ended(done)

    async def events(self) -> AsyncIterator[bytes]:
        """The response as it comes."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for _, new in self._answer:
            for told in self._add(new.text, last=bool(new.finish_reason)):
                yield told
        [done] = self._answer.completions
        for told in self._output.end(_status(done)):
            yield told
        whole = self._ended(done)
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: ApiError) -> bytes:
        """The last event of what cannot be gone on with."""
        fault = {"code": "server_error", "message": error.message}
        return self._event("response.failed", response=self._response("failed", [], fault))

    def _add(self, text: str, *, last: bool) -> Iterator[bytes]:
        for part in (self._reply.add(text), self._reply.finish() if last else Part()):
            self._thought.append(part.thought)
            yield from self._output.add(part)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number = self._count
        self._count += 1
        return event({"type": kind, "sequence_number": number} | fields, kind)

    def _ended(self, done: Completion) -> dict[str, Any]:
        status = _status(done)
        output = len(done.token_ids)
        thought = "".join(self._thought)
        return self._response(status, self._output.items) | {
            "completed_at": int(time.time()) if status == "completed" else None,
            "incomplete_details": _FULL if status == "incomplete" else None,
            "usage": {
                "input_tokens": done.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": done.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": output,
                "output_tokens_details": {
                    "reasoning_tokens": len(self._answer.llm.encode(thought)) if thought else 0
                },
                "total_tokens": done.prompt_tokens + output,
            },
        }

    def _response(
        self, status: str, output: list[dict[str, Any]], error: dict[str, str] | None = None
    ) -> dict[str, Any]:
        body, answer = self._body, self._answer
        form = body.text.format if body.text else None
        reasoning = body.reasoning
        return {
            "id": f"resp_{answer.id}",
            "object": "response",
            "created_at": answer.created,
            "completed_at": None,
            "status": status,
            "error": error,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": answer.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "seed": answer.seed,
            "system_fingerprint": answer.fingerprint,
            "background": False,
            "store": False,  # whatever was asked for
            "service_tier": "default",
            "temperature": answer.params.temperature,
            "top_p": answer.params.top_p,
            "top_logprobs": 0,
            "frequency_penalty": body.frequency_penalty,
            "presence_penalty": body.presence_penalty,
            "text": {"format": form.model_dump(by_alias=True) if form else {"type": "text"}},
            "tools": [tool.model_dump() for tool in body.tools],
            "tool_choice": body.model_dump(include={"tool_choice"})["tool_choice"],
            "truncation": "disabled",
            "metadata": body.metadata or {},
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
            "usage": None,
        }


def _status(done: Completion) -> str:
    return "incomplete" if done.finish_reason == "length" else "completed"
