"""Trilobit and the engines that install from PyPI, side by side on one shape with random weights.

    python benchmarks/peers.py [--peers-venv DIR] [--rounds 5] [--only trilobit llama.cpp-f16]

Every engine runs in a process of its own (`peer_engines.py`), the peers in an environment of
their own, which is made if it is not there (llama-cpp-python is compiled: minutes). A round runs
all of them, every other round backwards; what makes the machine slow for a while hits all. Slow
engines run in the first --slow-rounds only. An engine that cannot be installed or run stands in
the result as such.

llama.cpp runs the shape as its `bitnet`, which has SiLU where 2B-4T has relu²: other answers, the
same speed. Its F16 and Q4_0 are what BitNet's papers compare with. Heads differ: Trilobit's is
exact, llama.cpp's F16 or Q6_K, litespark's int4.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from facts import RESULTS, facts, measured, write

from trilobit import shapes, synth
from trilobit.formats import names
from trilobit.formats.gguf.names import gguf_name
from trilobit.formats.packed_source import PackedSource
from trilobit.formats.safetensors import as_float32
from trilobit.hub.home import home

ENGINES = Path(__file__).parent / "peer_engines.py"
PACKAGES = ("llama-cpp-python", "litespark-inference", "transformers", "accelerate")


@dataclass(frozen=True)
class Peer:
    name: str
    engine: str  # of peer_engines.py
    package: str
    form: str
    slow: bool = False


PEERS = (
    Peer("trilobit", "trilobit", "trilobit", "packed"),
    *(
        Peer(f"llama.cpp-{kind.lower()}", "llama_cpp", "llama-cpp-python", kind)
        for kind in ("TQ2_0", "TQ1_0", "Q4_0", "F16")
    ),
    Peer("litespark", "litespark", "litespark-inference", "bf16", slow=True),
    Peer("transformers-bf16", "transformers", "transformers", "bf16", slow=True),
)


class Models:
    """The random model of a shape in every form, each written when it is first wanted."""

    def __init__(self, shape: str, folder: Path, python: Path) -> None:
        self.shape, self.folder, self.python = shape, folder, python
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, form: str) -> Path:
        suffix = {"packed": "-random.trilobit", "bf16": "-random-bf16"}.get(form)
        path = self.folder / f"{self.shape}{suffix or f'-{form}.gguf'}"
        if path.exists():
            return path
        print(f"writing {path}", file=sys.stderr)
        if form == "packed":
            synth.synth_packed(shapes.shape(self.shape), path)
        elif form == "bf16":
            synth.synth(shapes.shape(self.shape), path, form="bf16")
        elif form == "F16":
            whole(path, lambda out: write_f16(PackedSource(self.path("packed")), out))
        else:
            source = self.path("F16")
            whole(path, lambda out: engine(self.python, "quantise", f"{source}:{out}:{form}", 2))
        return path


def whole(path: Path, make: Any) -> None:
    """Give a file its name when it is whole."""
    part = path.with_suffix(".part")
    make(part)
    part.rename(path)


def write_f16(source: PackedSource, out: Path) -> None:
    """The model as llama.cpp's `bitnet`, every matrix as float16, without a tokenizer."""
    config = replace(source.config, hidden_act="silu")
    file = gguf.GGUFWriter(out, "bitnet")
    file.add_vocab_size(config.vocab_size)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_rope_dimension_count(config.head_dim)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_theta)
    file.add_tokenizer_model("no_vocab")
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    table = names.float_tables(config)[0]  # shapes that tie their head
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    sizes = [(table, (config.vocab_size, config.hidden_size), half)]
    sizes += [(name, (length,), single) for name, length in names.all_norms(config)]
    sizes += [(name, shape, half) for name, shape in names.all_projections(config)]
    for name, shape, dtype in sizes:
        stored = gguf_name(name if name.endswith(".weight") else f"{name}.weight", config)
        file.add_tensor_info(stored, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    file.write_tensor_data(
        as_float32(source.table(table)[:], source.float_dtype).astype(np.float16)
    )
    for name, _ in names.all_norms(config):
        file.write_tensor_data(np.asarray(source.gain(name), dtype=np.float32))
    for name, _ in names.all_projections(config):
        codes, scales = source.projection(name)
        weights = codes.astype(np.float16)
        weights *= scales.astype(np.float16)[:, None] if len(scales) > 1 else np.float16(scales[0])
        file.write_tensor_data(weights)
    file.close()


def environment(folder: Path) -> Path:
    """Python of the peers' environment, made where there is none. Returns it; says what fails."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for package in PACKAGES:  # one by one: one that does not build must not stop the others
            print(f"installing {package} into {folder}", file=sys.stderr)
            subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=False)
    return python


def versions(python: Path) -> dict[str, str | None]:
    program = (
        "import json, sys\nfrom importlib import metadata\nfound = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError: found[name] = None\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [python, "-c", program, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def engine(python: Path, name: str, model: str, *numbers: int) -> dict[str, float]:
    """Run it; RuntimeError with its last line where it fails."""
    done = subprocess.run(
        [python, ENGINES, name, model, *map(str, numbers)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        raise RuntimeError(lines[-1][:300])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(
    peers: list[Peer], models: Models, arguments: argparse.Namespace
) -> Iterator[tuple[Peer, int, dict[str, float] | str]]:
    """(peer, threads, what it measured or why it could not), round by round."""
    failed: set[Peer] = set()
    for number in range(arguments.rounds):
        for peer in peers if number % 2 == 0 else peers[::-1]:
            if peer in failed or (peer.slow and number >= arguments.slow_rounds):
                continue
            python = Path(sys.executable) if peer.engine == "trilobit" else models.python
            for threads in arguments.threads:
                try:
                    model = str(models.path(peer.form))
                    sizes = (threads, arguments.prompt, arguments.generate)
                    yield peer, threads, engine(python, peer.engine, model, *sizes)
                except RuntimeError as error:
                    failed.add(peer)
                    yield peer, threads, str(error)
                    break


def summary(peer: Peer, threads: int, runs: list[dict[str, float]], size: int) -> dict[str, Any]:
    return {
        "engine": peer.name,
        "threads": threads,
        "runs": len(runs),
        "file_mb": round(size / 1e6),
        "prefill_tokens_per_s": measured([run["prefill"] for run in runs]),
        "decode_tokens_per_s": measured([run["decode"] for run in runs]),
        "peak_rss_mb": measured([run["peak_rss_mb"] for run in runs]),
        "joules": measured([run["joules"] for run in runs])
        if all("joules" in run for run in runs)
        else "unavailable",
    }


def show(one: dict[str, Any]) -> None:
    if "failed" in one:
        return print(f"{one['engine']:20} {one['failed']}")
    prefill, decode = one["prefill_tokens_per_s"], one["decode_tokens_per_s"]
    print(
        f"{one['engine']:20}{one['threads']} threads, {one['runs']} runs: "
        f"prefill {prefill['median']:7.1f} ({prefill['least']:.1f} to {prefill['most']:.1f}), "
        f"decode {decode['median']:6.1f} ({decode['least']:.1f} to {decode['most']:.1f}) tokens/s; "
        f"peak {one['peak_rss_mb']['median']:.0f} MB, file {one['file_mb']} MB"
    )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [peer.name for peer in PEERS]
    parser.add_argument("--peers-venv", type=Path, default=home() / "peers-venv")
    parser.add_argument("--folder", type=Path, default=home(), help="where the models are kept")
    parser.add_argument("--shape", choices=shapes.SHAPES, default="2b4t")
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    peers = [peer for peer in PEERS if peer.name in arguments.only]
    python = environment(arguments.peers_venv)
    models = Models(arguments.shape, arguments.folder, python)
    about, installed = facts(), versions(python)
    about["versions"] |= {name: version for name, version in installed.items() if version}
    runs: dict[tuple[Peer, int], list[dict[str, float]]] = {}
    results: list[dict[str, Any]] = []
    for peer in peers:
        if installed.get(peer.package, "") is None:
            results.append({"engine": peer.name, "failed": f"{peer.package} is not installed"})
    absent = {one["engine"] for one in results}
    peers = [peer for peer in peers if peer.name not in absent]
    for peer, threads, found in rounds(peers, models, arguments):
        if isinstance(found, str):
            results.append({"engine": peer.name, "threads": threads, "failed": found})
            continue
        found["prefill"] = arguments.prompt / found["prefill_s"]
        found["decode"] = arguments.generate / found["decode_s"]
        runs.setdefault((peer, threads), []).append(found)
        print(f"{peer.name}, {threads}: {found}", file=sys.stderr)
    for (peer, threads), several in runs.items():
        path = models.path(peer.form)
        files = path.iterdir() if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
        results.append(summary(peer, threads, several, size))
    for one in results:
        show(one)
    sizes = {name: getattr(arguments, name) for name in ("shape", "prompt", "generate", "rounds")}
    write(arguments.json, {**about, **sizes, "results": results})


if __name__ == "__main__":
    main()
