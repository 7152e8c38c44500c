"""Perplexity of a text as llama.cpp's llama-perplexity measures it, to stand beside its numbers.

Windows of 512 tokens that do not overlap, each beginning with the beginning-of-text token in place
of its first; only the second half of a window is scored, which has seen at least the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..engine.llm import LLM
from ..errors import RequestError

WINDOW = 512
Progress = Callable[[int, int], None]


def windowed_perplexity(llm: LLM, text: str, progress: Progress | None = None) -> tuple[float, int]:
    """Perplexity, and how many windows it is of; a last part window is left out.

    RequestError when the text fills none, or the model's context is shorter than one.
    """
    if llm.context < WINDOW:
        raise RequestError(f"a context of {llm.context} tokens is less than a window, {WINDOW}")
    ids = llm.encode(text)
    count = len(ids) // WINDOW
    if not count:
        raise RequestError(f"the text has {len(ids)} tokens; at least {WINDOW} are needed")
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
