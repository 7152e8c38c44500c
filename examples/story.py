"""A story, word by word as it is written.

    python examples/story.py "The little dog"

Without a model's name it is the one that comes with the package.
"""

from __future__ import annotations

import sys

from trilobit import LLM, SamplingParams


def main(begun: str = "Once upon a time", model: str = "trilobit-stories-5m") -> None:
    with LLM(model) as llm:
        stream = llm.stream(begun, SamplingParams(max_tokens=200))
        print(begun, end="")
        for piece in stream:
            print(piece, end="", flush=True)
        done = stream.completion
        # The same seed gives the same story, on any machine.
        print(f"\n\n{done.decode_tokens_per_s:.0f} tokens/s, seed {done.seed}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
