"""`/tokenize`, `/detokenize`, `/apply-template`: texts and ids as the model has them.

With the fields of llama.cpp's server (`content`) and of vLLM's (`prompt`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import Field

from trilobit.async_llm import AsyncLLM
from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.serve.limits import exits
from trilobit.serve.service import service_of

router = APIRouter()
Result = TypeVar("Result")


class _Named(Body):
    model: str | None = Field(
        default=None, description="Default: the first; for a conversation, the first for chats."
    )


class TokenizeBody(_Named):
    """A text, or a conversation, whose ids are asked."""

    content: str | None = None
    prompt: str | None = Field(default=None, description="The same as content.")
    messages: list[dict[str, Any]] | None = None
    with_pieces: bool = Field(default=False, description="With the text of each token.")


class DetokenizeBody(_Named):
    """Ids whose text is asked."""

    tokens: list[int]


class TemplateBody(_Named):
    """A conversation to be written as the model reads it."""

    messages: list[dict[str, Any]] = Field(min_length=1)


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Token ids, with those that the model wants before a text."""
    texts = [text for text in (body.content, body.prompt) if text is not None]
    if len(texts) + (body.messages is not None) != 1:
        raise ApiError(400, "give one of content, prompt and messages")

    def work(llm: AsyncLLM) -> dict[str, Any]:
        ids = llm.encode(texts[0]) if texts else llm.chat_ids(body.messages or [])
        tokens: list[Any] = list(ids)
        if body.with_pieces and llm.tokenizer is not None:
            tokens = [{"id": i, "piece": llm.tokenizer.piece(i)} for i in ids]
        return {"tokens": tokens, "count": len(ids), "max_model_len": llm.context}

    return await _off_the_loop(request, body.model, work, chat=not texts)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    """The text of ids, without special tokens."""

    def work(llm: AsyncLLM) -> dict[str, str]:
        text = llm.decode(body.tokens)
        return {"content": text, "prompt": text}

    return await _off_the_loop(request, body.model, work)


@router.post("/apply-template")
async def apply_template(body: TemplateBody, request: Request) -> dict[str, str]:
    """A conversation as one text, up to where the reply begins."""
    return await _off_the_loop(
        request, body.model, lambda llm: {"prompt": llm.chat_text(body.messages)}, chat=True
    )


async def _off_the_loop(
    request: Request, model: str | None, work: Callable[[AsyncLLM], Result], *, chat: bool = False
) -> Result:
    host = service_of(request).host
    name = await host.name_for_chat(model) if chat else host.name(model)
    llm = await exits(request).enter_async_context(host.llm(name))
    return await asyncio.to_thread(work, llm)
