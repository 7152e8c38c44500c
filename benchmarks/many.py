"""How near a step of many sequences comes to multiplying every weight with every token.

    python benchmarks/many.py [--shape 2b4t] [--gate-density 0.2] [--sequences 1 8 16]
                              [--threads 2] [--tokens 24] [--rounds 5] [--json FILE]

So many texts are written side by side (greedy, from one token each), with the machine's rate of
int8 products measured before and after. A step that multiplied all weights of the layers and all of
the first look at the head, at that rate and with nothing else to do, would take `all_ms`; that over
what a step takes is the share. It may be above 1, for what meets zeros is not multiplied. The head
is random, which is the worst case of the second look.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import check, facts, measured, write

from trilobit import LLM, SamplingParams, _native
from trilobit.bench.random_model import random_model
from trilobit.hub.home import home
from trilobit.model import shapes
from trilobit.model.config import ModelConfig

AHEAD = 4  # tokens that are not counted: the prompts' own step is among them


def products(config: ModelConfig) -> int:
    """Of one token: the layers' weights and the coarse plane of the head."""
    q, kv = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    hidden, ffn = config.hidden_size, config.intermediate_size
    layer = hidden * (2 * q + 2 * kv + 3 * ffn)
    return config.num_hidden_layers * layer + config.vocab_size * hidden


def step_seconds(llm: LLM, sequences: int, tokens: int, seed: int) -> float:
    """Of a step in which each of so many texts gets a token."""
    prompts = np.random.default_rng(seed).integers(2, llm.config.vocab_size, (sequences, 1))
    took = []
    for count in (AHEAD, AHEAD + tokens):
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        began = time.perf_counter()
        llm.generate(prompts.tolist(), params)
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / tokens


def measure(
    llm: LLM, sequences: list[int], threads: int, tokens: int, rounds: int
) -> list[dict[str, Any]]:
    macs = products(llm.config)
    steps: dict[int, list[float]] = {count: [] for count in sequences}
    shares: dict[int, list[float]] = {count: [] for count in sequences}
    rates = []
    for number in range(rounds):
        for count in sequences:
            before = _native.int8_gmac_per_s(threads, 5)
            seconds = step_seconds(llm, count, tokens, number)
            rates += [before, _native.int8_gmac_per_s(threads, 5)]
            steps[count].append(seconds * 1e3)
            shares[count].append(macs * count / max(rates[-2:]) / 1e9 / seconds)
    return [
        {
            "sequences": count,
            "step_ms": measured(steps[count]),
            "tokens_per_s": measured([count * 1e3 / ms for ms in steps[count]]),
            "all_ms": round(macs * count / max(rates) / 1e6, 2),
            "share_of_int8": measured(shares[count]),
            "int8_gmac_per_s": measured(rates),
        }
        for count in sequences
    ]


def show(results: list[dict[str, Any]]) -> None:
    print(f"{'sequences':>10}{'tokens/s':>10}{'step, ms':>10}{'all, ms':>9}   share")
    for one in results:
        share = one["share_of_int8"]
        print(
            f"{one['sequences']:>10}{one['tokens_per_s']['median']:>10.1f}"
            f"{one['step_ms']['median']:>10.1f}{one['all_ms']:>9.1f}   {share['median']:.0%} "
            f"({share['least']:.0%} to {share['most']:.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b4t", choices=list(shapes.SHAPES))
    parser.add_argument("--gate-density", type=float, metavar="SHARE")
    parser.add_argument("--sequences", nargs="+", type=cli.whole(most=64), default=[1, 8, 16])
    parser.add_argument("--threads", type=cli.whole(most=cli.MOST_THREADS), default=2)
    parser.add_argument("--tokens", type=cli.whole(), default=24)
    parser.add_argument("--rounds", type=cli.whole(), default=5)
    parser.add_argument("--folder", type=Path, help="where the random model is kept")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    check(given.json)
    about = facts()
    folder = given.folder or home()
    path = random_model(given.shape, folder, None, given.gate_density)
    llm = LLM(path, threads=given.threads, head="screened", speculation=False)
    results = measure(llm, given.sequences, given.threads, given.tokens, given.rounds)
    show(results)
    if given.json:
        told = {"shape": given.shape, "gate_density": given.gate_density, "threads": given.threads}
        write(given.json, about | told | {"isa": _native.isa(), "results": results})


if __name__ == "__main__":
    cli.run(main)
