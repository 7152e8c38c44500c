"""Is `trilobit perplexity` what llama-perplexity gives of the same GGUF? Needs llama-cpp-python.

    python benchmarks/llama_perplexity.py [MODEL] [--text FILE] [--program llama-perplexity]

Writes the model as a TQ2_0 file and measures it in windows of 512 tokens: by Trilobit; by that
program, where --program says where it is; and from llama.cpp's logits, by the program's definition
and by what `trilobit perplexity` makes of logits. Without --text the model writes stories to be
measured on.

llama.cpp has no relu² BitNet, so the weights run as its `bitnet`, with SiLU. It rounds activations
in blocks of 256 inputs; Trilobit, as the papers do, by token. For `down_proj`, which has more
inputs, that is another model. So two files are measured: "whole", and "256 neurons", the first
256 of each MLP, where a token's inputs are one block. "In blocks" is stock transformers, made to
round as llama.cpp does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cli
import numpy as np
from facts import check, facts, write
from gguf_llamacpp import SHAPES, Reshaped
from numpy.typing import NDArray

from trilobit import LLM, SamplingParams, _native
from trilobit.conversion import convert
from trilobit.evaluate.perplexity import perplexity
from trilobit.evaluate.texts import read_texts
from trilobit.formats.gguf.writer import write_gguf
from trilobit.hub.models import known_file

WINDOW, BLOCK = 512, 256
HALF = WINDOW // 2


class OneBlock(Reshaped):
    """The first 256 neurons of each MLP: no product has more inputs."""

    def __init__(self, path: Path, changes: dict[str, Any]) -> None:
        super().__init__(path, changes)
        self._wide = self.config.intermediate_size
        self.config = replace(self.config, intermediate_size=BLOCK)

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, scales = super().projection(name)
        rows, columns = (BLOCK if size == self._wide else size for size in codes.shape)
        return np.ascontiguousarray(codes[:rows, :columns]), scales

    def gain(self, name: str) -> NDArray[np.float32]:
        gain = super().gain(name)
        return gain[:BLOCK] if gain.size == self._wide else gain


class Theirs:
    """llama.cpp, in the place of an `LLM` that `perplexity` asks: by its own logits and ids."""

    context = WINDOW

    def __init__(self, gguf: Path) -> None:
        import llama_cpp

        exact = llama_cpp.GGML_TYPE_F32  # keys and values
        self._model = llama_cpp.Llama(
            str(gguf), n_ctx=WINDOW, n_batch=WINDOW, n_threads=1, type_k=exact, type_v=exact,
            logits_all=True, verbose=False,
        )  # fmt: skip

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenize(text.encode(), add_bos=True)
        return ids

    def score(self, windows: list[list[int]], *, first: list[int]) -> Iterator[Score]:
        for ids, begin in zip(windows, first, strict=True):
            self._model.reset()
            self._model.eval(ids)
            logits = np.array(self._model.scores[begin - 1 : len(ids) - 1], dtype=np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            chosen = logits[np.arange(len(logits)), ids[begin:]]
            yield Score(chosen - np.log(np.exp(logits).sum(axis=1)))


class Score(NamedTuple):
    """Log-probabilities of the tokens of a window that are scored."""

    logprobs: NDArray[np.float64]


def by_definition(theirs: Theirs, text: str) -> tuple[float, list[list[int]]]:
    """Of llama.cpp's logits, written down from llama-perplexity's source; and the windows."""
    [begin], ids = theirs.encode(""), theirs.encode(text)
    windows = [
        [begin, *ids[at + 1 : at + WINDOW]] for at in range(0, len(ids) // WINDOW * WINDOW, WINDOW)
    ]
    scores = theirs.score(windows, first=[HALF + 1] * len(windows))
    nats = np.concatenate([-score.logprobs for score in scores])
    return float(np.exp(nats.mean())), windows


def by_program(program: Path, gguf: Path, text: Path) -> float:
    """What the program prints of it."""
    words = ("-c", WINDOW, "-b", WINDOW, "-t", 1, "-ctk", "f32", "-ctv", "f32", "-fa", "off")
    done = subprocess.run(
        [program, "-m", gguf, "-f", text, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr)
    return float(found[1]) if found else cli.fail(f"{program}: says no perplexity")


def by_blocks(packed: Path, windows: list[list[int]]) -> float:
    """Stock transformers, with the inputs of its linear layers rounded in blocks."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.compiler.set_stance("force_eager")
        convert(packed, Path(folder) / "stock")
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "stock").eval()
        for layer in model.model.layers:
            whole = layer.mlp.down_proj.forward  # without a bias: a sum over parts of its input
            layer.mlp.down_proj.forward = partial(_by_parts, whole)
        nats = []
        for ids in windows:
            logits = model(torch.tensor([ids])).logits[0, HALF : WINDOW - 1].double()
            scored = torch.tensor(ids[HALF + 1 :])[:, None]
            nats.append(-torch.log_softmax(logits, -1).gather(-1, scored))
        return float(torch.cat(nats).mean().exp())


def _by_parts(whole: Any, inputs: Any) -> Any:
    total = 0
    for begin in range(0, inputs.shape[-1], BLOCK):
        part = inputs.new_zeros(inputs.shape)
        part[..., begin : begin + BLOCK] = inputs[..., begin : begin + BLOCK]
        total = total + whole(part)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="trilobit-stories-5m")
    parser.add_argument("--text", type=Path, help="to measure on; else the model writes some")
    parser.add_argument("--characters", type=cli.whole(), default=1 << 18, help="of it, at most")
    parser.add_argument("--stories", type=cli.whole(), default=40, help="to write, without --text")
    parser.add_argument("--program", type=Path, help="llama-perplexity, where it is built")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    check(arguments.json)
    import llama_cpp  # --help does without it

    original = known_file(arguments.model)
    if original is None:
        parser.error(f"{arguments.model}: not here; pull it first")
    if arguments.text is None:
        params = [
            SamplingParams(max_tokens=300, min_p=0, seed=seed) for seed in range(arguments.stories)
        ]
        with LLM(original) as llm:
            done = llm.generate(["Once upon a time"] * len(params), params)
        text = "\n".join(f"Once upon a time{one.text}" for one in done)
    else:
        text = "\n".join(read_texts(arguments.text))[: arguments.characters]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "text.txt"
        plain.write_text(text, encoding="utf-8")
        for what, shape in (("whole", Reshaped), ("256 neurons", OneBlock)):
            gguf, packed = Path(folder) / f"{what}.gguf", Path(folder) / f"{what}.trilobit"
            write_gguf(shape(original, SHAPES["bitnet"]), gguf, ternary="tq2_0")
            convert(gguf, packed)
            with LLM(packed, threads=1, kv_dtype="f32") as llm:
                ours = perplexity(llm, [text], window=WINDOW)
            theirs: Any = Theirs(gguf)
            defined, windows = by_definition(theirs, text)
            same = perplexity(theirs, [text], window=WINDOW)
            program = arguments.program and by_program(arguments.program, gguf, plain)
            row = {
                "model": what,
                "windows": ours.windows,
                "tokens": ours.tokens,
                "trilobit": round(ours.by_token, 5),
                "llama-perplexity": program,
                "llama.cpp's logits": round(defined, 5),
                "llama.cpp's logits, by trilobit": round(same.by_token, 5),
                "transformers, in blocks": round(by_blocks(packed, windows), 5),
            }
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if arguments.json:
        about = {**facts(), "isa": _native.isa(), "weights": original.stem, "type": "TQ2_0"}
        about["versions"] |= {"llama-cpp-python": llama_cpp.__version__}
        about["versions"] |= {name: version(name) for name in ("transformers", "torch")}
        write(arguments.json, {**about, "results": rows})


if __name__ == "__main__":
    cli.run(main)
