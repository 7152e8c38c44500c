"""Trilobit and the engines that install from PyPI, side by side on one shape with random weights.

    python3 -m venv peers-venv && peers-venv/bin/pip install -r benchmarks/peers.txt
    python benchmarks/peers.py --peers-venv peers-venv --folder FOLDER

Every engine runs in a process of its own (`peer_engines.py`), the peers in an environment of their
own. A round runs all of them, every other round backwards: what makes the machine slow for a while
hits all. The models (10 GB for 2b4t) are made before the first round and kept in FOLDER. Engines
that would take minutes get fewer tokens, as stands beside their figures. An engine that cannot be
run stands in the result with the reason. `plot.py` draws the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from facts import RESULTS, check, facts, measured, write

from trilobit import _native
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.home import home
from trilobit.layouts import fastest_layout
from trilobit.model import shapes
from trilobit.model.packing import LAYOUTS

if TYPE_CHECKING:
    from peer_models import PeerModels

ENGINES = Path(__file__).parent / "peer_engines.py"
LIMIT_S = 600  # of one run; what takes longer hangs


@dataclass(frozen=True)
class Peer:
    """most_prompt, most_generate: tokens that it can be given without taking minutes."""

    name: str
    label: str
    weights: str
    engine: str  # of peer_engines.py
    package: str
    form: str  # of peer_models.py
    most_prompt: int = 1 << 20
    most_generate: int = 1 << 20


def llama_cpp(kind: str, weights: str) -> Peer:
    name = f"llama.cpp-{kind.lower()}"
    return Peer(name, f"llama.cpp {kind}", weights, "llama_cpp", "llama-cpp-python", kind)


PEERS = (
    Peer("trilobit", "Trilobit", "exact bf16 head", "trilobit", "trilobit", "packed"),
    llama_cpp("TQ2_0", "ternary, head Q6_K"),
    llama_cpp("Q4_0", "4 bits, head Q6_K"),
    llama_cpp("F16", "float16"),
    Peer("litespark", "litespark", "ternary, head int4", "litespark", "litespark-inference", "hf"),
    Peer(
        "transformers",
        "transformers",
        "ternary as bf16, bf16 head",
        "transformers",
        "transformers",
        "hf",
        most_prompt=128,
        most_generate=8,
    ),
)


class Failed(Exception):
    """An engine that cannot be run: why, in one line."""


def python_of(venv: Path) -> Path:
    folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    return venv / folder / name


def engine(python: Path, name: str, model: str, threads: int, *numbers: int) -> dict[str, float]:
    """What one run measured. Failed with its last line where it fails."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(variables, str(threads)), "HF_HUB_OFFLINE": "1"}
    # -P: packages of the peers must not take the scripts of this folder for theirs (`kernels`)
    command = [python, "-P", ENGINES, name, model, *map(str, (threads, *numbers))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {LIMIT_S} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [""]
        raise Failed(f"exit {done.returncode}: {lines[-1][:300]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def versions(python: Path, packages: set[str]) -> dict[str, str]:
    """Of those that are installed in the environment of the peers."""
    program = (
        "import json, sys\nfrom importlib import metadata\nfound = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    if not python.exists():
        return {}
    done = subprocess.run(
        [python, "-c", program, *sorted(packages)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


class Comparison:
    """Runs of several engines, and why others did not run."""

    def __init__(self, peers: list[Peer], models: PeerModels, python: Path) -> None:
        self.peers, self.models, self.python = peers, models, python
        self.runs: dict[tuple[Peer, int], list[dict[str, float]]] = {}
        self.failed: dict[Peer, str] = {}

    def prepare(self, installed: dict[str, str]) -> None:
        """Make every model before anything is timed."""
        for peer in self.peers:
            if peer.package not in installed:
                self.fail(peer, f"{peer.package} is not installed in {self.python.parent.parent}")
                continue
            try:
                self.models.path(peer.form)
            except Failed as error:
                self.fail(peer, str(error))

    def round(self, peers: list[Peer], threads: int, prompt: int, generate: int) -> None:
        for peer in peers:
            if peer in self.failed:
                continue
            sizes = (min(prompt, peer.most_prompt), min(generate, peer.most_generate))
            python = Path(sys.executable) if peer.engine == "trilobit" else self.python
            model = str(self.models.path(peer.form))
            try:
                found = engine(python, peer.engine, model, threads, *sizes)
            except Failed as error:
                self.fail(peer, str(error))
                continue
            found |= {"prompt": sizes[0], "generate": sizes[1]}
            self.runs.setdefault((peer, threads), []).append(found)
            print(f"{peer.name}, {threads} threads: {found}", file=sys.stderr)

    def fail(self, peer: Peer, why: str) -> None:
        self.failed[peer] = why
        print(f"{peer.name}: {why}", file=sys.stderr)

    def results(self) -> Iterator[dict[str, Any]]:
        for peer in self.peers:
            about = {"engine": peer.name, "label": peer.label, "weights": peer.weights}
            if peer in self.failed:
                yield {**about, "failed": self.failed[peer]}
                continue
            if peer.form == "packed":
                bits = PackedModel(self.models.path("packed")).layout.removesuffix("-bit")
                about["weights"] = f"ternary in {bits} bits, {peer.weights}"
            size = self.models.size_mb(peer.form)
            for (other, threads), runs in self.runs.items():
                if other == peer:
                    yield {**about, "threads": threads, "file_mb": size, **summary(runs)}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    prompt, generate = runs[0]["prompt"], runs[0]["generate"]
    return {
        "prompt": prompt,
        "generate": generate,
        "runs": len(runs),
        "prefill_tokens_per_s": measured([prompt / run["prefill_s"] for run in runs]),
        "decode_tokens_per_s": measured([generate / run["decode_s"] for run in runs]),
        "peak_rss_mb": measured([run["peak_rss_mb"] for run in runs]),
        "joules": measured([run["joules"] for run in runs])
        if all("joules" in run for run in runs)
        else "unavailable",
    }


def show(one: dict[str, Any]) -> None:
    if "failed" in one:
        return print(f"{one['label']:16} did not run: {one['failed']}")
    prefill, decode = one["prefill_tokens_per_s"], one["decode_tokens_per_s"]
    return print(
        f"{one['label']:16} {one['threads']} threads, {one['runs']} runs, {one['prompt']} in and "
        f"{one['generate']} out: "
        f"prefill {prefill['median']:7.1f} ({prefill['least']:.1f} to {prefill['most']:.1f}), "
        f"decode {decode['median']:6.1f} ({decode['least']:.1f} to {decode['most']:.1f}) tokens/s; "
        f"peak {one['peak_rss_mb']['median']:.0f} MB, file {one['file_mb']} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [peer.name for peer in PEERS]
    parser.add_argument("--peers-venv", type=Path, default=home() / "peers-venv")
    parser.add_argument("--folder", type=Path, default=home() / "peers", help="of the models")
    parser.add_argument("--shape", choices=shapes.SHAPES, default="2b4t")
    parser.add_argument("--gate-density", type=float, default=0.5, help="0.2: as trained ones")
    layouts = ("auto", *LAYOUTS)
    parser.add_argument("--layout", choices=layouts, default="auto", help="of Trilobit's weights")
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), nargs="+", default=[2])
    parser.add_argument("--prompt", type=cli.whole(), default=256)
    parser.add_argument("--generate", type=cli.whole(2), default=64)
    parser.add_argument("--rounds", type=cli.whole(), default=3)
    parser.add_argument("--prepare", action="store_true", help="make the models, measure nothing")
    parser.add_argument("--json", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    from peer_models import PeerModels  # needs gguf, which --help does not

    check(arguments.json)
    about = facts()
    peers = [peer for peer in PEERS if peer.name in arguments.only]
    python = python_of(arguments.peers_venv)
    installed = versions(python, {peer.package for peer in peers} | {"torch"})
    about["versions"] |= installed
    models = PeerModels(
        arguments.shape,
        arguments.gate_density,
        arguments.folder,
        fastest_layout(shapes.shape(arguments.shape), max(arguments.threads))
        if arguments.layout == "auto"
        else arguments.layout,
        lambda source, out, kind: engine(python, "quantise", f"{source}:{out}:{kind}", 2) and None,
    )
    comparison = Comparison(peers, models, python)
    comparison.prepare(about["versions"])
    if arguments.prepare:
        return
    for number in range(arguments.rounds):
        for threads in arguments.threads:
            order = peers if number % 2 == 0 else peers[::-1]
            comparison.round(order, threads, arguments.prompt, arguments.generate)
    results = list(comparison.results())
    for one in results:
        show(one)
    about |= {"isa": _native.isa(), "shape": arguments.shape, "rounds": arguments.rounds}
    about["gate_density"] = arguments.gate_density
    write(arguments.json, {**about, "results": results})


if __name__ == "__main__":
    cli.run(main)
