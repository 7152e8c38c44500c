"""`/v1/completions`: texts, or token ids, to be continued, or only to be scored (`echo`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from trilobit.engine.event import TokenLogprob
from trilobit.inputs import Prompt
from trilobit.serve.answer import Answer, ask
from trilobit.serve.body import Json
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.fields import Sampling, head, usage
from trilobit.serve.openai.logprobs import TextLogprobs
from trilobit.serve.service import service_of
from trilobit.serve.sse import DONE, STREAMED, Events, event

router = APIRouter()
_MOST_LOGPROBS = 20


class CompletionBody(Sampling):
    """A text to be continued, or several."""

    prompt: str | list[int] | list[str] | list[list[int]] = Field(
        description="A text or token ids, or a list of such."
    )
    max_tokens: int = Field(default=16, ge=0)
    best_of: int | None = Field(default=None, description="Only what n is.")
    echo: bool = Field(default=False, description="The prompt is part of the text.")
    logprobs: int | None = Field(default=None, ge=0, le=_MOST_LOGPROBS)

    @property
    def prompts(self) -> list[Prompt]:
        """One or several."""
        given: Any = self.prompt
        one = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int))
        return [given] if one else given


@router.post("/v1/completions", responses=STREAMED)
async def completions(body: CompletionBody, request: Request) -> Response:
    """Continue texts, at once or as a stream of chunks."""
    settings = service_of(request).settings
    if body.best_of not in (None, body.n):
        raise ApiError(400, "best_of: this server gives all it makes; ask for n", param="best_of")
    if not body.prompts:
        raise ApiError(400, "prompt: is an empty list; give at least one", param="prompt")
    answer = await ask(
        request,
        model=body.model,
        prompts=body.prompts,
        # What follows a prompt is chosen with its last token anyway, and left out for 0.
        params=body.params(max_tokens=max(1, body.max_tokens), logprobs=body.logprobs),
        n=body.n,
        prompt_logprobs=body.logprobs if body.echo else None,
        cache_salt=body.cache_salt,
    )
    if body.stream:
        return Events(_chunks(answer, body), keep_alive_s=settings.keep_alive_s)
    done = await answer.complete()
    choices = []
    for index, one in enumerate(done):
        choice = _Choice(answer, body, index)
        told = choice.before()
        if body.max_tokens:
            made = choice.piece(one.text, one.logprobs, one.finish_reason, one.token_ids)
            told = choice.joined(told, made)
        choices.append(told | {"finish_reason": told["finish_reason"] or "length"})
    return Json(
        head(answer, prefix="cmpl-", kind="text_completion")
        | {"choices": choices, "usage": usage(answer, tokens=body.max_tokens > 0)}
    )


async def _chunks(answer: Answer, body: CompletionBody) -> AsyncIterator[bytes]:
    first = head(answer, prefix="cmpl-", kind="text_completion")
    extra = {"usage": None} if body.wants_usage else {}
    choices = [_Choice(answer, body, index) for index in range(answer.n)]
    for choice in choices if body.echo else ():
        yield event(first | {"choices": [choice.before()]} | extra)
    async for index, new in answer:
        if not body.max_tokens:
            told = choices[index].piece("", None, "length")
        elif new.text or new.finish_reason or new.logprobs or body.return_token_ids:
            told = choices[index].piece(new.text, new.logprobs, new.finish_reason, new.token_ids)
        else:
            continue
        yield event(first | {"choices": [told]} | extra)
    if body.wants_usage:
        counts = usage(answer, tokens=body.max_tokens > 0)
        yield event(first | {"choices": [], "usage": counts})
    yield DONE


class _Choice:
    """One choice, in pieces: the prompt where it is echoed, then what was made."""

    def __init__(self, answer: Answer, body: CompletionBody, index: int) -> None:
        self._answer, self._echo, self._index = answer, body.echo, index
        self._logprobs = None if body.logprobs is None else TextLogprobs(answer.llm)
        self._with_ids = body.return_token_ids
        self._prompt = body.prompts[answer.prompt_of(index)]

    def before(self) -> dict[str, Any]:
        """The prompt, or an empty piece."""
        if not self._echo:
            return self.piece("", (), None)
        number = self._answer.prompt_of(self._index)
        ids = self._answer.prompts[number]
        given = self._prompt
        text = given if isinstance(given, str) else self._answer.llm.decode(given)
        told = self.piece(text, None, None)
        if self._logprobs is not None:
            assert self._answer.prompt_logprobs is not None
            logprobs = self._answer.prompt_logprobs[number]
            told["logprobs"] = self._logprobs.of_prompt(ids, logprobs)
        return told

    def piece(
        self,
        text: str,
        logprobs: tuple[TokenLogprob, ...] | None,
        finish_reason: str | None,
        token_ids: tuple[int, ...] = (),
    ) -> dict[str, Any]:
        """Text as it comes."""
        told = self._logprobs.of(logprobs) if self._logprobs and logprobs is not None else None
        piece = {
            "index": self._index,
            "text": text,
            "logprobs": told,
            "finish_reason": finish_reason,
        }
        return piece | {"token_ids": token_ids} if self._with_ids else piece

    def joined(self, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        """Two pieces as one."""
        logprobs = other["logprobs"]
        if one["logprobs"] and logprobs:
            logprobs = {key: one["logprobs"][key] + logprobs[key] for key in logprobs}
        return other | {"text": one["text"] + other["text"], "logprobs": logprobs}
