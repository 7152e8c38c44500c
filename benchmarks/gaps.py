"""How long a text that is being written waits, while another is scored or a long prompt comes in.

    python benchmarks/gaps.py [MODEL] [--shape 350m] [--tokens 4000] [--streams 4] [--budget-ms 200]

Streams write side by side. After a while a text of so many tokens is scored, then one is continued;
a gap is the time between two tokens of a stream. The budget of a step is what gaps may come to.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import check, facts, write

from trilobit import AsyncLLM, SamplingParams, _native
from trilobit.model import shapes
from trilobit.synth import synth_packed

QUIET = 40  # tokens of each stream with nothing beside it
ENDLESS = SamplingParams(max_tokens=1 << 20, temperature=0, ignore_eos=True)


class Streams:
    """Writers, and the gaps between their tokens since `begin`."""

    def __init__(self, llm: AsyncLLM, count: int) -> None:
        self.gaps: list[float] = []
        prompts = [[5 + number] * 8 for number in range(count)]
        self._tasks = [asyncio.create_task(self._read(llm, prompt)) for prompt in prompts]

    async def _read(self, llm: AsyncLLM, prompt: list[int]) -> None:
        before = None
        async for _ in llm.stream(prompt, ENDLESS):
            now = time.perf_counter()
            if before is not None:
                self.gaps.append(now - before)
            before = now

    async def wait(self, gaps: int) -> None:
        """Until there are so many."""
        while len(self.gaps) < gaps:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Stop writing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def summary(name: str, gaps: list[float], seconds: float) -> dict[str, Any]:
    ms = np.array(gaps) * 1e3
    told = {
        "beside": name,
        "seconds": round(seconds, 3),
        "gaps": len(gaps),
        "median_ms": round(float(np.median(ms)), 1),
        "p99_ms": round(float(np.percentile(ms, 99)), 1),
        "most_ms": round(float(ms.max()), 1),
    }
    print(
        f"{name:8} {told['seconds']:8.1f} s, {told['gaps']:5} gaps: median {told['median_ms']:7.1f}"
        f" ms, 99 % below {told['p99_ms']:7.1f} ms, the longest {told['most_ms']:7.1f} ms"
    )
    return told


async def measure(llm: AsyncLLM, tokens: int, streams: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    first, second = random.integers(2, llm.config.vocab_size, (2, tokens)).tolist()
    writing = Streams(llm, streams)
    await writing.wait(streams)
    results = []

    async def nothing() -> None:
        await writing.wait(QUIET * streams)

    once = SamplingParams(max_tokens=1, temperature=0)
    for name, work in (
        ("nothing", nothing()),
        ("score", llm.score(first)),
        ("prompt", llm.generate(second, once)),
    ):
        writing.gaps.clear()
        begun = time.perf_counter()
        await work
        results.append(summary(name, writing.gaps[:], time.perf_counter() - begun))
    await writing.end()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="default: random weights of a shape")
    parser.add_argument("--shape", choices=shapes.SHAPES, default="350m")
    parser.add_argument("--tokens", type=cli.whole(2), default=4000)
    parser.add_argument("--streams", type=cli.whole(1, 64), default=4)
    parser.add_argument("--budget-ms", type=cli.whole(), default=200)
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), default=2)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    check(arguments.json)
    before = facts()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = Path(folder) / f"{arguments.shape}.trilobit"
            config = shapes.shape(arguments.shape)
            synth_packed(config, model)
        llm = AsyncLLM(
            model,
            threads=arguments.threads,
            step_budget_ms=arguments.budget_ms,
            kv_memory_mb=4096,
        )
        if llm.context <= arguments.tokens:
            cli.fail(f"the context is {llm.context}; lower --tokens")
        results = asyncio.run(measure(llm, arguments.tokens, arguments.streams))
    if arguments.json:
        about = {
            "model": Path(model).name,
            "tokens": arguments.tokens,
            "streams": arguments.streams,
            "budget_ms": arguments.budget_ms,
            "threads": arguments.threads,
            "isa": _native.isa(),
        }
        write(arguments.json, {**before, **about, "results": results})


if __name__ == "__main__":
    cli.run(main)
