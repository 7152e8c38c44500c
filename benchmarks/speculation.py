"""What guessing ahead gains where a text repeats its input, and what it costs where none does.

    python benchmarks/speculation.py [MODEL] [--sequences 1 4] [--runs 5] [--json FILE]

No model here copies well enough, so outputs are given: every step computes and chooses as always,
then the given tokens take the place of the chosen ones. Each text runs with and without
speculation in turn, on one prompt that stays in the cache; a ratio is of two runs side by side.
A model with a tokenizer also writes texts of its own, which must be the same both ways.

    edit     code of this repository, written again with one name changed
    summary  every other sentence of a document, joined by words that it does not have
    prose    another document than the prompt: repeats what prose repeats
    random   tokens that nothing can guess
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import ROOT, check, facts, measured, write

from trilobit import LLM, SamplingParams, _native

PROMPT, OUTPUT = 300, 200  # tokens; together they fit the context of the bundled model
OPENINGS = ("Once upon a time", "The little dog said", "Tom and Lily went to the park")
OWN = {"greedy": {"temperature": 0.0}, "temperature 0.7": {"temperature": 0.7, "seed": 1}}


def words(text: str) -> list[str]:
    """Pieces about as long as the tokens of a large vocabulary."""
    return re.findall(r"\s?\w+|\s?[^\w\s]|\s+", text)


def texts(vocabulary: int) -> Iterator[tuple[str, list[int], list[int]]]:
    """(name, prompt, output) as token ids, made up in the order of appearance."""
    code = (ROOT / "src/trilobit/engine/scheduler.py").read_text(encoding="utf-8")
    code = code[code.index("    def remove") :]
    document = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    other = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    beginning = "".join(words(document)[:PROMPT])
    chosen = re.split(r"(?<=[.:;])\s+", beginning)[::2]
    joints = ("Firstly", "Next", "Besides", "Furthermore", "Moreover", "Lastly", "Hence", "Still")
    summary = " ".join(
        f"{joint}, it claims: {sentence}"
        for joint, sentence in zip(joints * 9, chosen, strict=False)
    )
    number: dict[str, int] = {}

    def ids(text: str, count: int) -> list[int]:
        return [
            number.setdefault(w, 2 + len(number) % (vocabulary - 2)) for w in words(text)[:count]
        ]

    yield "edit", ids(code, PROMPT), ids(re.sub(r"\bsequence\b", "request", code), OUTPUT)
    yield "summary", ids(document, PROMPT), ids(summary, OUTPUT)
    yield "prose", ids(document, PROMPT), ids(other, OUTPUT)
    random = np.random.default_rng(0)
    yield "random", *(random.integers(2, vocabulary, n).tolist() for n in (PROMPT, OUTPUT))


class Recorder:
    """A decoder that notes when it has chosen how many tokens, and may be told which."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.begin(None)

    def begin(self, script: Sequence[int] | None) -> None:
        self._script = script
        self._written: dict[int, int] = {}
        self._times: list[float] = []
        self._tokens: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def verify(
        self, samplers: list[Any], drafts: list[list[int]], allowed: list[Any]
    ) -> list[list[int]]:
        chosen = self._decoder.verify(samplers, drafts, allowed)
        if self._script is not None:
            chosen = [self._told(id(s), d) for s, d in zip(samplers, drafts, strict=True)]
        if chosen:
            self._times.append(time.perf_counter())
            self._tokens.append(sum(map(len, chosen)))
        return chosen

    def _told(self, sampler: int, draft: list[int]) -> list[int]:
        assert self._script is not None
        at = self._written.get(sampler, 0)
        right = 0
        while right < len(draft) and self._script[at + right : at + right + 1] == [draft[right]]:
            right += 1
        tokens = list(self._script[at : at + right + 1])
        self._written[sampler] = at + len(tokens)
        return tokens

    def rate(self) -> float:
        """Tokens a second of all sequences together, after the first step that gave any."""
        return sum(self._tokens[1:]) / (self._times[-1] - self._times[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="default: the bundled model")
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), default=2)
    parser.add_argument("--runs", type=cli.whole(), default=5)
    parser.add_argument("--sequences", type=cli.whole(), nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    check(arguments.json)
    before = facts()  # the load of the machine, before it is ours
    model = (arguments.model,) if arguments.model else ()
    sides = {on: LLM(*model, threads=arguments.threads, speculation=on) for on in (False, True)}
    recorders = {on: Recorder(llm._worker.engine.backend.decoder) for on, llm in sides.items()}
    for on, llm in sides.items():
        llm._worker.engine.backend.decoder = recorders[on]
    results = []

    def compare(name: str, several: list[Any], params: SamplingParams, script: Any) -> None:
        rates: dict[bool, list[float]] = {False: [], True: []}
        for run in range(arguments.runs + 1):
            done = {}
            for on in (run % 2 == 0, run % 2 == 1):
                recorders[on].begin(script)
                done[on] = sides[on].generate(several, params)
                if run:  # the first fills caches
                    rates[on].append(recorders[on].rate())
            assert [c.token_ids for c in done[True]] == [c.token_ids for c in done[False]]
        ratios = [with_ / without for with_, without in zip(rates[True], rates[False], strict=True)]
        entry = {
            "text": name,
            "sequences": len(several),
            "tokens": sum(len(c.token_ids) for c in done[True]),
            "drafted": sum(c.drafted_tokens for c in done[True]),
            "accepted": sum(c.accepted_tokens for c in done[True]),
            "tokens_per_s": measured(rates[True]),
            "without": measured(rates[False]),
            "ratio": measured(ratios),
        }
        results.append(entry)
        ratio = entry["ratio"]
        print(
            f"{name:28} {len(several)} at once: {entry['without']['median']:8.1f} -> "
            f"{entry['tokens_per_s']['median']:8.1f} tokens/s, ratio {ratio['median']:.3f} "
            f"({ratio['least']:.3f} to {ratio['most']:.3f}), "
            f"{entry['accepted']} of {entry['drafted']} guesses right"
        )

    llm = sides[True]
    for count in arguments.sequences:
        for name, prompt, output in texts(llm.config.vocab_size):
            params = SamplingParams(max_tokens=len(output), temperature=0, ignore_eos=True)
            compare(name, [prompt] * count, params, output)
    if llm.tokenizer is not None:
        for name, sampling in OWN.items():
            params = SamplingParams(max_tokens=OUTPUT, ignore_eos=True, **sampling)
            for opening in OPENINGS:
                compare(f"own, {name}", [opening], params, None)
    if arguments.json:
        about = {
            "model": llm.path.name,
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
            "threads": arguments.threads,
            "runs": arguments.runs,
            "isa": _native.isa(),
            "head": "screened" if llm.head_is_screened else "full",
        }
        write(arguments.json, {**before, **about, "results": results})


if __name__ == "__main__":
    cli.run(main)
