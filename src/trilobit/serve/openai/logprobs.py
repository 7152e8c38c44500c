"""Log-probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trilobit.async_llm import AsyncLLM
from trilobit.engine.event import TokenLogprob


def content_logprobs(
    llm: AsyncLLM, logprobs: Iterable[TokenLogprob] | None
) -> dict[str, Any] | None:
    """As chat answers have them."""
    if logprobs is None:
        return None
    return {
        "content": [
            _told(llm, one.token_id, one.logprob)
            | {"top_logprobs": [_told(llm, *pair) for pair in one.top]}
            for one in logprobs
        ],
        "refusal": None,
    }


def text_of(llm: AsyncLLM, token_id: int) -> str:
    """What a token stands for; where that is no whole character, its name in the vocabulary."""
    tokenizer = llm.tokenizer
    if tokenizer is None:
        return f"token_id:{token_id}"
    text = tokenizer.decode([token_id])
    if text and "\ufffd" not in text:
        return text
    return tokenizer.token(token_id) or f"token_id:{token_id}"


def _told(llm: AsyncLLM, token_id: int, logprob: float) -> dict[str, Any]:
    text = text_of(llm, token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
