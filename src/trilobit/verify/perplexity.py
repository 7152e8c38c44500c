"""Perplexity of a text as llama.cpp's llama-perplexity measures it, to stand beside its numbers.

Windows of 512 tokens that do not overlap, each beginning with the beginning-of-text token in place
of its first; only the second half of a window is scored, which has seen at least the first.
"""

from __future__ import annotations

import math

import numpy as np

from trilobit.errors import RequestError
from trilobit.formats.source import Source
from trilobit.llm import LLM
from trilobit.progress import Steps
from trilobit.text.tokenizer import Tokenizer, without_tokenizer

WINDOW = 512
_SURELY_ENOUGH = 1 << 16  # characters


def check_text_for(source: Source, text: str) -> None:
    """RequestError when `windowed_perplexity` would refuse it: before anything long begins."""
    if source.text.tokenizer is None:
        raise RequestError(without_tokenizer(source.path, "leave out the text, or "))
    _check_context(source.config.max_position_embeddings)
    if len(text) < _SURELY_ENOUGH:
        ids = Tokenizer(source.text.tokenizer, str(source.path)).encode(text)
        _check_length(len(ids) + source.text.add_bos)


def _check_context(context: int) -> None:
    if context < WINDOW:
        raise RequestError(f"a context of {context} tokens is less than a window, {WINDOW}")


def _check_length(tokens: int) -> None:
    if tokens < WINDOW:
        raise RequestError(
            f"the text has {tokens} token{'s' * (tokens != 1)}; at least {WINDOW} are needed"
        )


def windowed_perplexity(llm: LLM, text: str, progress: Steps | None = None) -> tuple[float, int]:
    """Perplexity, and how many windows it is of; a last part window is left out.

    RequestError when the text fills none, or the model's context is shorter than one.
    """
    _check_context(llm.context)
    ids = llm.encode(text)
    _check_length(len(ids))
    count = len(ids) // WINDOW
    begins = llm.encode("")  # nothing, where no token begins a text
    total = 0.0
    for number in range(count):
        window = ids[number * WINDOW : (number + 1) * WINDOW]
        logprobs = llm.score([*begins, *window[len(begins) :]]).logprobs
        # The token at place i is predicted by logprobs[i - 1].
        total += float(logprobs[WINDOW // 2 :].sum(dtype=np.float64))
        if progress:
            progress(number + 1, count)
    return math.exp(-total / (count * (WINDOW // 2 - 1))), count
