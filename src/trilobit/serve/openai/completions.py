"""`/v1/completions`: texts, or token ids, to be continued."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from trilobit.engine.event import Completion, Usage
from trilobit.serve.answer import Answer, ask
from trilobit.serve.openai.chat import DONE
from trilobit.serve.openai.fields import Sampling, usage_of
from trilobit.serve.service import service_of
from trilobit.serve.sse import Events, event

router = APIRouter()


class CompletionBody(Sampling):
    """A text to be continued."""

    prompt: str | list[int]
    max_tokens: int = Field(default=16, ge=1)


@router.post("/v1/completions")
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue a text, at once or as a stream of chunks."""
    answer = await ask(
        request,
        model=body.model,
        prompt=body.prompt,
        params=body.params(max_tokens=body.max_tokens, logprobs=None),
        n=body.n,
    )
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        keep_alive_s = service_of(request).settings.keep_alive_s
        return Events(_chunks(answer, with_usage=with_usage), keep_alive_s=keep_alive_s)
    done = await answer.complete()
    return JSONResponse(
        _head(answer)
        | {
            "choices": [_choice(i, one) for i, one in enumerate(done)],
            "usage": usage_of([_usage(one) for one in done]),
        }
    )


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": f"cmpl-{answer.id}",
        "object": "text_completion",
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
        "seed": answer.seed,
    }


def _choice(index: int, done: Completion) -> dict[str, Any]:
    return {
        "index": index,
        "text": done.text,
        "logprobs": None,
        "finish_reason": done.finish_reason,
    }


def _usage(done: Completion) -> Usage:
    return Usage(
        prompt_tokens=done.prompt_tokens,
        cached_tokens=done.cached_tokens,
        output_tokens=len(done.token_ids),
    )


async def _chunks(answer: Answer, *, with_usage: bool) -> AsyncIterator[bytes]:
    head = _head(answer)
    extra = {"usage": None} if with_usage else {}
    usages: dict[int, Usage] = {}
    async for index, new in answer:
        usages[index] = new.usage
        if new.text or new.finish_reason:
            choice = {
                "index": index,
                "text": new.text,
                "logprobs": None,
                "finish_reason": new.finish_reason,
            }
            yield event(head | {"choices": [choice]} | extra)
    if with_usage:
        told = usage_of([usages[index] for index in sorted(usages)])
        yield event(head | {"choices": [], "usage": told})
    yield DONE
