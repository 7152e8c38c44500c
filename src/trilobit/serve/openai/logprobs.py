"""Log-probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
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


class TextLogprobs:
    """As completions have them: lists of the same length, offsets counted through a text."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm, self._offset = llm, 0

    def of(self, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Of the next tokens."""
        told = list(logprobs)
        return self._lists(
            [one.token_id for one in told],
            [one.logprob for one in told],
            [self._top(one) for one in told],
        )

    def of_prompt(self, ids: Items[int], logprobs: Items[TokenLogprob]) -> dict[str, Any]:
        """Of a prompt's tokens, whose first follows nothing."""
        rest = [self._top(one) for one in logprobs]
        return self._lists(ids, [None, *(one.logprob for one in logprobs)], [None, *rest])

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        # The token itself is among them, likely or not, as OpenAI's and vLLM's answers have it.
        pairs = (*one.top, (one.token_id, one.logprob))
        told: dict[str, float] = {}
        for token_id, logprob in pairs:
            told.setdefault(text_of(self._llm, token_id), logprob)
        return told

    def _lists(
        self,
        ids: Items[int],
        logprobs: list[float | None] | list[float],
        top: list[Any],
    ) -> dict[str, Any]:
        tokens = [text_of(self._llm, i) for i in ids]
        unseen = self._llm.tokenizer.special_ids if self._llm.tokenizer else frozenset()
        offsets = []
        for i, token in zip(ids, tokens, strict=True):
            offsets.append(self._offset)
            self._offset += 0 if i in unseen else len(token)
        return {
            "tokens": tokens,
            "token_logprobs": list(logprobs),
            "top_logprobs": top,
            "text_offset": offsets,
        }


def text_of(llm: AsyncLLM, token_id: int) -> str:
    """A token, for people."""
    return llm.tokenizer.piece(token_id) if llm.tokenizer else f"token_id:{token_id}"


def _told(llm: AsyncLLM, token_id: int, logprob: float) -> dict[str, Any]:
    text = text_of(llm, token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
