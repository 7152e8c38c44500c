"""Trilobit's server beside llama.cpp's from PyPI, on the same weights.

    python3 -m venv peer && peer/bin/pip install 'llama-cpp-python[server]==0.3.36'
    python benchmarks/serving_peer.py --python peer/bin/python [MODEL] [--shape 350m]
        [--clients 1 16 64]

llama.cpp has no relu² BitNet, so both run the model as one with SiLU: other answers, the same work
(`gguf_llamacpp.py`). Its file is TQ2_0. `--shape`: random weights of a shape, with MODEL's
tokenizer. Both servers are asked in turns, over loopback, by as many clients at once for an answer
each; tokens are those that the servers tell of (`usage`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli
import numpy as np
from facts import check, facts, write
from gguf_llamacpp import SHAPES, Reshaped

from trilobit.bundled import DEFAULT
from trilobit.conversion import convert
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.open import open_source
from trilobit.formats.packed.writer import write_packed
from trilobit.formats.source import Source
from trilobit.hub.models import known_file
from trilobit.model import shapes
from trilobit.synth import synth

WORDS = (
    "the dog cat boy girl ran saw park big red ball tree said happy little went home play".split()
)
PROMPT = 24  # words
START_S = 60


def body(client: int, turn: int, tokens: int) -> bytes:
    """A prompt that begins as no other does."""
    draw = random.Random(f"{client} {turn}")
    prompt = " ".join(draw.choices(WORDS, k=PROMPT))
    return json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0.0}).encode()


async def answered(port: int, asked: bytes) -> tuple[float, int]:
    """Seconds until an answer is there, and its tokens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(asked)
    started = time.perf_counter()
    writer.write(head + asked)
    said = await reader.read()
    seconds = time.perf_counter() - started
    writer.close()
    answer = said.partition(b"\r\n\r\n")[2]
    if b" 200 " not in said[:20]:
        raise RuntimeError(f"the server said {said[:200]!r}")
    return seconds, json.loads(answer)["usage"]["completion_tokens"]


async def crowd(port: int, clients: int, turn: int, tokens: int) -> tuple[float, list[float]]:
    """Tokens a second of all clients together, and the seconds that each waited."""
    started = time.perf_counter()
    asked = [answered(port, body(client, turn, tokens)) for client in range(clients)]
    found = await asyncio.gather(*asked)
    seconds = time.perf_counter() - started
    return sum(count for _, count in found) / seconds, [one for one, _ in found]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def started(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """A server that listens."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=os.environ)
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    return cli.fail(f"this server does not start: {' '.join(command)}")


def source_of(folder: Path, args: argparse.Namespace) -> Source:
    """The weights of both."""
    original = known_file(args.model)
    if original is None:
        cli.fail(f"{args.model}: not here; pull it first")
    model = Reshaped(original, SHAPES["bitnet"])
    if args.shape is None:
        return model
    config = replace(
        shapes.shape(args.shape),
        hidden_act="silu",
        vocab_size=model.config.vocab_size,
        bos_token_id=model.config.bos_token_id,
        eos_token_ids=model.config.eos_token_ids,
    )
    convert(original, folder / "text", to="hf")
    synth(config, folder / "random")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "text" / name, folder / "random" / name)
    return open_source(folder / "random")


def commands(folder: Path, args: argparse.Namespace) -> dict[str, tuple[list[str], int]]:
    """How each server is started, and where it listens."""
    source = source_of(folder, args)
    packed, gguf = folder / "model.trilobit", folder / "model.gguf"
    write_packed(source, packed)
    write_gguf(source, gguf, ternary="tq2_0")
    ports = free_port(), free_port()
    threads = str(args.threads)
    ours = [sys.executable, "-m", "trilobit", "serve", str(packed), "--port", str(ports[0])]
    theirs = [str(args.python), "-m", "llama_cpp.server", "--model", str(gguf)]
    theirs += ["--port", str(ports[1]), "--n_threads", threads, "--n_threads_batch", threads]
    theirs += ["--n_ctx", "512", "--logits_all", "false", "--verbose", "false"]
    theirs += ["--interrupt_requests", "false"]  # or a new client ends the stream before
    return {
        "trilobit": ([*ours, "--threads", threads], ports[0]),
        "llama.cpp": (theirs, ports[1]),
    }


def row(ports: dict[str, int], clients: int, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one number of clients; the servers take turns."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    waits: dict[str, list[float]] = {name: [] for name in ports}
    for turn in range(args.turns + 1):
        for name, port in ports.items():
            rate, waited = asyncio.run(crowd(port, clients, turn, args.tokens))
            if turn:  # the first one warms up
                rates[name].append(rate)
                waits[name] += waited
    told: dict[str, Any] = {"clients": clients}
    for name in ports:
        p50, p95 = np.percentile(waits[name], (50, 95))
        print(
            f"{clients:3} clients, {name:9}: {statistics.median(rates[name]):8,.0f} tokens/s "
            f"({min(rates[name]):,.0f} to {max(rates[name]):,.0f}); an answer after "
            f"{p50 * 1000:8.1f} ms (p95 {p95 * 1000:.1f})",
            flush=True,
        )
        wait_s = {"p50": float(p50), "p95": float(p95)}
        told[name] = {"tokens_per_s": rates[name], "wait_s": wait_s}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=DEFAULT)
    parser.add_argument("--shape", choices=shapes.SHAPES, help="random weights of a shape instead")
    parser.add_argument("--python", type=Path, required=True, help="of the peer's environment")
    parser.add_argument("--clients", type=cli.whole(1, 256), nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=cli.whole(2, 4096), default=64)
    parser.add_argument("--turns", type=cli.whole(1, 99), default=3)
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), default=1)
    parser.add_argument("--json", type=Path, help="write the results here, too")
    args = parser.parse_args()
    check(args.json)
    before = facts()
    with tempfile.TemporaryDirectory() as folder:
        servers = commands(Path(folder), args)
        running = [started(*server) for server in servers.values()]
        try:
            ports = {name: port for name, (_, port) in servers.items()}
            rows = [row(ports, clients, args) for clients in args.clients]
        finally:
            for process in running:
                process.kill()
                process.wait()
    if args.json:
        write(args.json, {**before, "model": args.shape or args.model, "results": rows})


if __name__ == "__main__":
    cli.run(main)
