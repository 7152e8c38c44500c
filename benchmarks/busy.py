"""Measure a model beside endless loops of other processes.

    python benchmarks/busy.py [--threads 1 2 4] [--loops 0 1 2] [--model 2b4t] [--json FILE]
                              [--gguf FILE --peers-venv DIRECTORY]

People run a model beside a browser, a build, a server of their own. Every round measures each
number of threads with each number of loops, in an order that turns; a rate is compared with the
same threads' on the quiet machine in the same round. Fair shares of C cores beside L loops allow
min(1, C / (L + T)) of it for T threads. With --gguf, llama.cpp runs that file in turn, from the
environment of `peers.py`, whose --prepare makes such files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cli
from facts import check, facts, measured, write
from peers import Failed, engine, python_of

from trilobit import LLM, SamplingParams, _native
from trilobit.bench.random_model import random_model
from trilobit.bundled import DEFAULT
from trilobit.hub.home import home
from trilobit.machine import cores
from trilobit.model import shapes

PARTS = ("prefill", "decode")
SETTLE_S = 0.3  # until the loops run and nobody else starts


@contextmanager
def endless(loops: int) -> Iterator[None]:
    """So many other processes that want a core each."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


class Busy:
    """Rates of one model, by engine, threads and loops.

    gguf: llama.cpp's file, and the Python that runs it.
    """

    def __init__(
        self,
        model: str | Path,
        threads: list[int],
        prompt: int,
        generate: int,
        gguf: tuple[Path, Path] | None,
    ) -> None:
        self.llms = {count: LLM(model, threads=count, speculation=False) for count in threads}
        self.prompt, self.generate, self.gguf = prompt, generate, gguf
        self.params = SamplingParams(max_tokens=generate, temperature=0, ignore_eos=True)
        self.rates: dict[tuple[str, int, int], list[dict[str, float]]] = {}

    def round(self, number: int, loops: list[int]) -> None:
        for count in _turned(loops, number):
            with endless(count):
                for threads in _turned(list(self.llms), number):
                    self.keep("trilobit", threads, count, self.run(threads, number))
                    if self.gguf:
                        self.keep("llama.cpp", threads, count, self.run_peer(threads, *self.gguf))

    def keep(self, name: str, threads: int, loops: int, rates: dict[str, float]) -> None:
        self.rates.setdefault((name, threads, loops), []).append(rates)

    def run(self, threads: int, number: int) -> dict[str, float]:
        llm = self.llms[threads]
        vocabulary = llm.config.vocab_size  # other tokens each time: none are in the cache
        ids = [(number * 31 + i * 37) % vocabulary for i in range(self.prompt)]
        done = llm.generate(ids, self.params)
        return {"prefill": done.prefill_tokens_per_s, "decode": done.decode_tokens_per_s}

    def run_peer(self, threads: int, gguf: Path, python: Path) -> dict[str, float]:
        sizes = (self.prompt, self.generate)
        try:
            found = engine(python, "llama_cpp", str(gguf), threads, *sizes)
        except (Failed, OSError) as error:
            cli.fail(f"llama.cpp does not run {gguf} with {python}: {error}")
        return {part: n / found[f"{part}_s"] for part, n in zip(PARTS, sizes, strict=True)}

    def results(self) -> Iterator[dict[str, Any]]:
        for (name, threads, loops), runs in sorted(self.rates.items()):
            quiet = self.rates.get((name, threads, 0))
            entry: dict[str, Any] = {"engine": name, "threads": threads, "loops": loops}
            for part in PARTS:
                entry[f"{part}_tokens_per_s"] = measured([run[part] for run in runs])
                if quiet and loops:
                    shares = [run[part] / q[part] for run, q in zip(runs, quiet, strict=True)]
                    entry[f"{part}_of_quiet"] = measured(shares)
            yield entry


def _turned(items: list[int], number: int) -> list[int]:
    return items[number % len(items) :] + items[: number % len(items)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=shapes.SHAPES, help="random weights; else the bundled")
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), nargs="+", default=[1, 2])
    parser.add_argument("--loops", type=cli.whole(0, 1024), nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompt", type=cli.whole(), default=64)
    parser.add_argument("--generate", type=cli.whole(2), default=64)
    parser.add_argument("--runs", type=cli.whole(), default=5)
    parser.add_argument("--gguf", type=Path, help="that llama.cpp runs in turn")
    parser.add_argument("--peers-venv", type=Path, default=home() / "peers-venv")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    check(arguments.json)
    before = facts()  # the load of the machine, before it is ours
    shape = arguments.model
    model = random_model(shape, home(), "2-bit") if shape else DEFAULT
    gguf = (arguments.gguf, python_of(arguments.peers_venv)) if arguments.gguf else None
    busy = Busy(model, arguments.threads, arguments.prompt, arguments.generate, gguf)
    for threads in arguments.threads:  # fills caches
        busy.run(threads, -1)
        if gguf:
            busy.run_peer(threads, *gguf)
    for number in range(arguments.runs):
        busy.round(number, arguments.loops)
    results = list(busy.results())
    for one in results:
        line = f"{one['engine']}, {one['threads']} threads, {one['loops']} loops: "
        for part in PARTS:
            rate, share = one[f"{part}_tokens_per_s"], one.get(f"{part}_of_quiet")
            line += f"{part} {rate['median']:.4g} ({rate['least']:.4g} to {rate['most']:.4g})"
            line += f", {share['median']:.0%} of quiet; " if share else "; "
        print(line.rstrip("; "))
    if arguments.json:
        about = {
            "model": shape or DEFAULT,
            "prompt": arguments.prompt,
            "generate": arguments.generate,
            "runs": arguments.runs,
            "gguf": str(arguments.gguf) if arguments.gguf else None,
            "cores": cores().count,
            "isa": _native.isa(),
        }
        write(arguments.json, {**before, **about, "results": results})


if __name__ == "__main__":
    cli.run(main)
