"""Sort sentences by how likely a model finds them: the lowest perplexity first.

    python examples/likelier.py "The dog ran home." "The dog ran homes." "Dog the home ran."

Picks among candidates of a translation, a spelling or a transcription. A token's log-probability
depends on what stands before it, so the sentences are compared as wholes.
"""

from __future__ import annotations

import argparse

from trilobit import LLM


def main(sentences: list[str], model: str) -> None:
    with LLM(model) as llm:
        scores = llm.score(sentences)  # all in the same passes over the weights
    ranked = sorted(zip(scores, sentences, strict=True), key=lambda pair: pair[0].perplexity)
    for score, sentence in ranked:
        print(f"{score.perplexity:10.1f}  {sentence}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--model", default="trilobit-stories-5m")
    args = parser.parse_args()
    main(args.sentences, args.model)
