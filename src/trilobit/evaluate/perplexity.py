"""Perplexity of texts: by token, by word, and as bits per byte, which tokenizers cannot flatter.

Three ways to read a text that is longer than a window:

- "llama.cpp": as its llama-perplexity does, to stand beside its numbers. All texts are one. Windows
  that do not overlap, each beginning with the beginning-of-text token in place of its first; only
  the second half of a window is scored, which has seen at least the first. A last part window is
  left out.
- "sliding": all texts are one. Windows move on by `stride` tokens, and what is new in each is
  scored: every token once, behind at least `window - stride` others (but for the first window).
- "document": as "sliding", but every text by itself, behind a beginning-of-text token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError
from trilobit.llm import LLM

Mode = Literal["llama.cpp", "sliding", "document"]
MODES: tuple[Mode, ...] = get_args(Mode)
WINDOW = 512
_AT_ONCE = 16  # windows given to the engine together


@dataclass(slots=True, kw_only=True)
class Perplexity:
    """What was measured of so many tokens, so far.

    bytes (of UTF-8) and words (what stands between white space) are of the tokens that were scored;
    None where a window has tokens that are not. nats: their negative log-likelihood; squares: the
    sum of its squares.
    """

    mode: Mode
    window: int
    stride: int
    documents: int = 0
    windows: int = 0
    tokens: int = 0
    words: int | None = None
    bytes: int | None = None
    nats: float = 0.0
    squares: float = field(default=0.0, repr=False)

    @property
    def by_token(self) -> float:
        """Perplexity: e to the mean negative log-likelihood of a token; NaN of no token."""
        return _exp(self.nats, self.tokens)

    @property
    def standard_error(self) -> float:
        """Of `by_token`, as if tokens were independent of each other; llama.cpp's estimate."""
        if self.tokens < 2:
            return math.nan
        mean = self.nats / self.tokens
        variance = max(0.0, self.squares / self.tokens - mean * mean)
        return self.by_token * math.sqrt(variance / (self.tokens - 1))

    @property
    def by_word(self) -> float | None:
        """e to the negative log-likelihood of a word; None if words were not counted."""
        return None if self.words is None else _exp(self.nats, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """None if bytes were not counted; NaN of no byte."""
        if self.bytes is None:
            return None
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def add(self, logprobs: NDArray[np.float32]) -> None:
        """Count the log-probabilities of a window."""
        nats = -logprobs.astype(np.float64)
        if not np.isfinite(nats).all():
            raise RequestError("the model gives logits that are no numbers; see trilobit verify")
        self.windows += 1
        self.tokens += len(nats)
        self.nats += float(nats.sum())
        self.squares += float((nats * nats).sum())


def _exp(nats: float, count: int) -> float:
    try:
        return math.exp(nats / count) if count else math.nan
    except OverflowError:  # a model that is very sure of something else
        return math.inf


def perplexity(
    llm: LLM,
    texts: Iterable[str],
    *,
    mode: Mode = "llama.cpp",
    window: int = WINDOW,
    stride: int | None = None,
    progress: Callable[[Perplexity, int], None] | None = None,
) -> Perplexity:
    """Measure `texts`; progress is told the value so far, and of how many windows it will be.

    window: tokens that are read together. stride: tokens from one window to the next, half a window
    unless said otherwise; "llama.cpp" has none.

    Raises RequestError when there is nothing to score, for an impossible window, and for a model
    without a tokenizer.
    """
    check_windows(llm.context, mode=mode, window=window, stride=stride)
    found = Perplexity(mode=mode, window=window, stride=stride or _stride(mode, window))
    windows = _halves(llm, texts, found) if mode == "llama.cpp" else _slides(llm, texts, found)
    for number in range(0, len(windows), _AT_ONCE):
        several = windows[number : number + _AT_ONCE]
        ids = [one.ids[one.begin : one.end].tolist() for one in several]
        for score in llm.score(ids, first=[one.first - one.begin for one in several]):
            found.add(score.logprobs)
        if progress:
            progress(found, len(windows))
    if not found.tokens:
        raise RequestError(too_short(window if mode == "llama.cpp" else 2))
    return found


def too_short(tokens: int) -> str:
    """What to tell of a text that fills no window."""
    return f"the text has less than {tokens} tokens; give a longer one"


def check_windows(context: int, *, mode: Mode, window: int, stride: int | None) -> None:
    """RequestError for what `perplexity` could not measure with such a context."""
    if mode not in MODES:
        raise RequestError(f"mode is {mode!r:.40}; expected one of {', '.join(MODES)}")
    if not 2 <= window <= context:
        raise RequestError(f"window is {window}; expected 2 to {context}, the context")
    if stride is not None and mode == "llama.cpp":
        raise RequestError("llama.cpp's windows have no stride; leave it out, or take another mode")
    if stride is not None and not 1 <= stride < window:
        raise RequestError(f"stride is {stride}; expected 1 to {window - 1}, less than the window")


def _stride(mode: Mode, window: int) -> int:
    return window if mode == "llama.cpp" else window // 2


class _Window(NamedTuple):
    """Tokens `begin` to `end` of some, scored from `first` on."""

    ids: NDArray[np.int32]
    begin: int
    end: int
    first: int


def _halves(llm: LLM, texts: Iterable[str], found: Perplexity) -> list[_Window]:
    several = list(texts)
    found.documents, window = len(several), found.window
    begins, ids = llm.encode(""), llm.encode("\n".join(several))
    windows = np.array(ids[: len(ids) // window * window], dtype=np.int32).reshape(-1, window)
    windows[:, : len(begins)] = begins
    return [_Window(one, 0, window, window // 2 + 1) for one in windows]


def _slides(llm: LLM, texts: Iterable[str], found: Perplexity) -> list[_Window]:
    windows = []
    found.words = found.bytes = 0
    begins = llm.encode("")
    # A text that no token begins stands behind the one that ends the text before it, if any does.
    before = begins or list(llm.config.eos_token_ids[:1])
    several = list(texts)
    found.documents = len(several)
    for text in several if found.mode == "document" else ["\n".join(several)]:
        ids = np.array([*before, *llm.encode(text)[len(begins) :]], dtype=np.int32)
        # Else the first token has nothing before it.
        scored = text if before else llm.decode(ids[1:].tolist())
        found.words += len(scored.split())
        found.bytes += len(scored.encode())
        first = 1
        for begin in range(0, len(ids), found.stride):
            end = min(begin + found.window, len(ids))
            if end > first:
                windows.append(_Window(ids, begin, end, first))
                first = end
            if end == len(ids):
                break
    return windows
