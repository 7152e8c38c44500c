"""A continuation on stdout as it comes, and what it cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from trilobit.console import printable
from trilobit.engine.native import isa
from trilobit.llm import LLM
from trilobit.machine import peak_rss_mb
from trilobit.sampling import SamplingParams
from trilobit.stream import Stream


def read(stream: Stream, shown: Callable[[str], None], begun: str = "") -> bool:
    """Show how a text begins and, as it comes, a stream; False when Ctrl-C ended it."""
    with stream:
        try:
            if begun:
                shown(begun)
            for text in stream:
                shown(text)
        except KeyboardInterrupt:
            return False
    return True


def summary(llm: LLM, params: SamplingParams, stream: Stream) -> dict[str, Any]:
    """What came of a stream and what it cost, as JSON values."""
    completion = stream.completion
    return {
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "cached_tokens": completion.cached_tokens,
        "drafted_tokens": completion.drafted_tokens,
        "accepted_tokens": completion.accepted_tokens,
        "prefill_tokens_per_s": round(completion.prefill_tokens_per_s, 3),
        "decode_tokens_per_s": round(completion.decode_tokens_per_s, 3),
        "threads": llm.threads,
        "isa": isa(),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "seed": params.seed,
    }


def show(text: str) -> None:
    """Write text to stdout at once: as it is to a file, harmless to a terminal."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    print(printable(text) if terminal else text, end="", flush=True)
