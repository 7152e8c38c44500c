"""What a server makes of many streams at once, beside the same engine without one.

    python benchmarks/serving.py [MODEL] [--shape 350m] [--streams 1 4 16 64] [--tokens 128]

A real `trilobit serve` in a process of its own, asked over loopback by bare connections. For each
number of streams: tokens a second of all together, the time to the first token, and what the same
prompts take in `LLM.generate`, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import check, facts, write

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT
from trilobit.model import shapes
from trilobit.synth import synth_packed

PROMPT = 24  # tokens


def prompts(count: int, turn: int) -> list[list[int]]:
    """Of which no two begin alike: nothing comes from a cache."""
    rng = np.random.default_rng([count, turn])
    return rng.integers(5, 2000, (count, PROMPT)).tolist()


async def streamed(port: int, prompt: list[int], tokens: int) -> float:
    """Read one stream to its end; seconds to its first token."""
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,  # a model of random weights has no text
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    started = time.perf_counter()
    writer.write(head + body)
    said = await reader.readuntil(b"\r\n\r\n")
    await reader.readuntil(b"data: ")
    first_s = time.perf_counter() - started
    rest = await reader.read()
    writer.close()
    if b" 200 " not in said or not rest.rstrip().endswith((b"[DONE]", b"0")):
        raise RuntimeError(f"the server said {said[:60]!r} … {rest[-60:]!r}")
    return first_s


async def served(port: int, count: int, turn: int, tokens: int) -> tuple[float, list[float]]:
    """Seconds that all streams take, and those to each first token."""
    asked = [streamed(port, prompt, tokens) for prompt in prompts(count, turn)]
    started = time.perf_counter()
    firsts = await asyncio.gather(*asked)
    return time.perf_counter() - started, firsts


def alone(llm: LLM, count: int, turn: int, tokens: int) -> float:
    """Seconds of the same in one call, without a server."""
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    started = time.perf_counter()
    llm.generate(prompts(count, turn + 1000), params)
    return time.perf_counter() - started


def measured(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of streams."""
    options = ["--max-sequences", str(max(args.streams))]
    if args.threads is not None:
        options += ["--threads", str(args.threads)]
    command = [sys.executable, "-m", "trilobit", "serve", model, "--port", "0", *options]
    rows = []
    most = max(args.streams)
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        LLM(
            model, threads=args.threads, max_sequences=most, max_batch_tokens=max(256, most)
        ) as llm,
    ):
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)\s*$", process.stdout.readline())
            if found is None:
                cli.fail("the server did not start")
            port = int(found[1])
            for count in args.streams:
                rows.append(row(llm, port, count, args))
        finally:
            process.terminate()
    return rows


def row(llm: LLM, port: int, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one number of streams: the median of all turns, the two sides by turns."""
    asyncio.run(served(port, count, 0, 8))
    alone(llm, count, 0, 8)
    total = count * args.tokens
    rates, plain, firsts = [], [], []
    for turn in range(1, args.turns + 1):
        seconds, first = asyncio.run(served(port, count, turn, args.tokens))
        rates.append(total / seconds)
        firsts += first
        plain.append(total / alone(llm, count, turn, args.tokens))
    served_rate, plain_rate = statistics.median(rates), statistics.median(plain)
    p50, p95 = np.percentile(firsts, (50, 95))
    print(
        f"{count:3} streams: {served_rate:8,.0f} tokens/s served, {plain_rate:8,.0f} without a "
        f"server ({served_rate / plain_rate:.0%}); first token {p50 * 1000:7.1f} ms (p95 "
        f"{p95 * 1000:.1f})",
        flush=True,
    )
    return {
        "streams": count,
        "tokens_per_s": rates,
        "generate_tokens_per_s": plain,
        "first_token_s": {"p50": float(p50), "p95": float(p95)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEFAULT)
    parser.add_argument("--shape", choices=shapes.SHAPES, help="random weights of a shape instead")
    parser.add_argument("--streams", type=cli.whole(1, 256), nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=cli.whole(2, 4096), default=128)
    parser.add_argument("--turns", type=cli.whole(1, 99), default=3)
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS))
    parser.add_argument("--json", type=Path, help="write the results here, too")
    arguments = parser.parse_args()
    check(arguments.json)
    before = facts()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.shape is not None:
            model = str(Path(folder) / f"{arguments.shape}.trilobit")
            synth_packed(shapes.shape(arguments.shape), model)
        rows = measured(model, arguments)
    if arguments.json:
        write(arguments.json, {**before, "model": Path(model).name, "results": rows})


if __name__ == "__main__":
    cli.run(main)
