"""Does llama.cpp compute from our GGUF files what we compute? Needs `pip install llama-cpp-python`.

    python benchmarks/gguf_llamacpp.py [MODEL] [--texts 20]

Lets the model (default: the bundled one) write texts, and compares their perplexity: ours from the
packed file, llama.cpp's from TQ1_0 and TQ2_0. llama.cpp has no relu² BitNet, so the weights run as
the shapes that it knows, with gains of 1 for norms that the model lacks. What such a model says is
worth nothing; that both programs compute the same of it is the question. They cannot agree to the
bit: llama.cpp rounds activations in blocks of 256, to 8 bits, and scales to float16.
Also compares the token ids that both make of the texts.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli
import numpy as np
from numpy.typing import NDArray

from trilobit import LLM, SamplingParams
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.packed.source import PackedSource
from trilobit.formats.packed.writer import write_packed
from trilobit.hub.models import known_file
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.rope import Llama3Scaling

_SILU = {"hidden_act": "silu"}
SHAPES: dict[str, dict[str, Any]] = {
    "bitnet": _SILU,
    "llama": {**_SILU, "sub_norms": False},
    "llama, scaled": {
        **_SILU,
        "sub_norms": False,
        "rope_scaling": Llama3Scaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    },
    "qwen3": {**_SILU, "sub_norms": False, "qk_norms": True},
    "gemma3": {
        "hidden_act": "gelu_pytorch_tanh",
        "sub_norms": False,
        "qk_norms": True,
        "post_norms": True,
        "embedding_scale": 16.0,
        "query_pre_attn_scalar": 64.0,
        "layer_types": ("sliding_attention",) * 5 + ("full_attention",),
        "sliding_window": 64,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1e6,
    },
}


class Reshaped(PackedSource):
    """A packed model with another shape of the same sizes."""

    def __init__(self, path: Path, changes: dict[str, Any]) -> None:
        super().__init__(path)
        self.config: ModelConfig = replace(self.config, **changes)
        self._lengths = dict(tensor_names.all_norms(self.config))

    def gain(self, name: str) -> NDArray[np.float32]:
        if name in self.file:
            return super().gain(name)
        return np.ones(self._lengths[name], dtype=np.float32)


def theirs(path: Path, ids: list[int]) -> float:
    """Mean log-probability of ids after the first, by llama.cpp."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=len(ids), n_batch=len(ids), n_threads=2, logits_all=True, verbose=False
    )
    model.eval(ids)
    logits = np.array(model.scores[: len(ids) - 1], dtype=np.float64)
    top = logits.max(axis=1, keepdims=True)
    sums = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return float((logits[np.arange(len(ids) - 1), ids[1:]] - sums).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="trilobit-stories-5m")
    parser.add_argument("--texts", type=cli.whole(), default=20)
    arguments = parser.parse_args()
    import llama_cpp  # --help does without it

    original = known_file(arguments.model)
    if original is None:
        parser.error(f"{arguments.model}: not here; pull it first")
    llm = LLM(original)
    texts = [
        llm.generate("Once upon a time", SamplingParams(max_tokens=300, min_p=0, seed=seed)).text
        for seed in range(arguments.texts)
    ]
    print(f"llama-cpp-python {llama_cpp.__version__}, {len(texts)} texts of {original.stem}")
    with tempfile.TemporaryDirectory() as folder:
        for shape, changes in SHAPES.items():
            source = Reshaped(original, changes)
            packed = Path(folder) / f"{shape}.trilobit"
            write_packed(source, packed)
            ours = LLM(packed)
            windows = [ours.encode(text) for text in texts]
            own = np.array([ours.score(ids).logprobs.mean(dtype=np.float64) for ids in windows])
            for kind in ("tq1_0", "tq2_0"):
                path = Path(folder) / f"{shape}-{kind}.gguf"
                write_gguf(source, path, ternary=kind)
                other = np.array([theirs(path, ids) for ids in windows])
                vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
                same = sum(
                    vocabulary.tokenize(text.encode(), add_bos=True) == ids
                    for text, ids in zip(texts, windows, strict=True)
                )
                print(
                    f"{shape:14}{kind:6} perplexity ours {np.exp(-own.mean()):12.4f}, "
                    f"llama.cpp {np.exp(-other.mean()):12.4f}, largest difference of a text's "
                    f"mean log-probability {np.abs(own - other).max():.5f}; "
                    f"ids equal in {same} of {len(texts)} texts"
                )


if __name__ == "__main__":
    cli.run(main)
