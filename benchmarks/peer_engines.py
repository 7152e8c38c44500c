"""One engine in a process of its own, for `peers.py`, in the environment where it is installed.

    python peer_engines.py ENGINE MODEL THREADS PROMPT GENERATE

Prints one line of JSON: seconds of a prompt and of the tokens after it (greedy), the process's
peak resident memory in MB, and joules of the processor where they can be read. ENGINE "quantise"
writes a GGUF file in another type instead: MODEL is FROM:TO:TYPE.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[list[int]], int]  # tokens in, the most likely next one out
# Tokens in, twice, and out. Two lengths, for what compiles itself for one length (torch.compile)
# and for every length only at the second.
WARM_UP, WARM_UP_OUT = (8, 9), 4
ROOM = 32  # that warming up takes


def trilobit(model: str, threads: int, prompt: int, generate: int) -> dict[str, float]:
    from trilobit import LLM, SamplingParams

    llm = LLM(model, threads=threads, speculation=False)

    def run(ids: list[int], count: int) -> tuple[float, float]:
        done = llm.generate(ids, SamplingParams(max_tokens=count, temperature=0, ignore_eos=True))
        return (
            len(ids) / done.prefill_tokens_per_s,
            count / done.decode_tokens_per_s if count > 1 else 0.0,
        )

    vocabulary = llm.config.vocab_size
    for length in WARM_UP:
        run(tokens(vocabulary, length, seed=1), WARM_UP_OUT)
    before = joules()
    prefill_s, decode_s = run(tokens(vocabulary, prompt), generate)
    return measured(prefill_s, decode_s, before)


def llama_cpp(model: str, threads: int, prompt: int, generate: int) -> dict[str, float]:
    import llama_cpp
    import numpy as np

    llm = llama_cpp.Llama(
        model,
        n_ctx=prompt + generate + ROOM,
        n_batch=prompt,
        n_ubatch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def step(ids: list[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(array, len(ids))
        if llama_cpp.llama_decode(llm.ctx, batch) != 0:
            sys.exit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (llm.n_vocab(),)).argmax())

    return timed(step, llm.n_vocab(), prompt, generate)


def litespark(model: str, threads: int, prompt: int, generate: int) -> dict[str, float]:
    from litespark_inference.torchless import loader, runtime

    folder = Path(model)
    loader._resolve_hf_snapshot = lambda _: (folder / "config.json", folder / "model.safetensors")
    loader.open_safetensors = Masters  # it reads float masters, and nothing else
    llm = loader.load_bitnet_2b()
    state = runtime.init_state(llm, t_max=prompt + generate + ROOM)

    def step(ids: list[int]) -> int:
        # Its kernels return without computing where more than 64 tokens come at once
        for first in range(0, len(ids), 64):
            logits = runtime.forward_prefill(llm, state, ids[first : first + 64])
        return int(logits.argmax())

    return timed(step, llm.config.vocab_size, prompt, generate)


class Masters:
    """A packed checkpoint, read as its bfloat16 masters, by litespark's own reader.

    ±3/2 and 0 times the scale round to the codes, and where two in three are not 0, as in random
    weights, their mean is the scale. Spares 4.8 GB on the disk; what is timed has forgotten them.
    """

    def __init__(self, path: str) -> None:
        from litespark_inference.torchless import safetensors_io

        self.file = safetensors_io.open_safetensors(path)
        self.view, self.close_mmap, self.close = (
            self.file.view,
            self.file.close_mmap,
            self.file.close,
        )

    def get(self, name: str) -> tuple[Any, str]:
        import numpy as np

        array, dtype = self.file.get(name)
        if dtype != "U8":
            return array, dtype
        stored, _ = self.file.get(f"{name}_scale")  # bfloat16, as all floats of the checkpoint
        scale = (stored.astype(np.uint32) << 16).view(np.float32)[0]
        values = np.array([-1.5, 0, 1.5], dtype=np.float32) * scale
        masters = (values.view(np.uint32) >> 16).astype(np.uint16)
        rows = [masters[array >> shift & 3] for shift in (0, 2, 4, 6)]
        return np.concatenate(rows), "BF16"


def transformers(model: str, threads: int, prompt: int, generate: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    cache: list[Any] = [None]

    @torch.inference_mode()
    def step(ids: list[int]) -> int:
        done = llm(torch.tensor([ids]), past_key_values=cache[0], use_cache=True, logits_to_keep=1)
        cache[0] = done.past_key_values
        return int(done.logits[0, -1].argmax())

    return timed(step, llm.config.vocab_size, prompt, generate)


def quantise(model: str, threads: int, *_: int) -> dict[str, float]:
    """By llama.cpp's own quantiser, which makes the tied head Q6_K."""
    import llama_cpp

    source, out, kind = model.split(":")
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"{source}: not quantised to {kind}")
    return {}


ENGINES = {f.__name__: f for f in (trilobit, llama_cpp, litespark, transformers, quantise)}


def timed(step: Step, vocabulary: int, prompt: int, generate: int) -> dict[str, float]:
    for length in WARM_UP:
        token = step(tokens(vocabulary, length, seed=1))
    for _ in range(WARM_UP_OUT):
        token = step([token])
    before = joules()
    start = time.perf_counter()
    token = step(tokens(vocabulary, prompt))
    middle = time.perf_counter()
    for _ in range(generate):
        token = step([token])
    return measured(middle - start, time.perf_counter() - middle, before)


def measured(prefill_s: float, decode_s: float, before: float | None) -> dict[str, float]:
    found = {"prefill_s": prefill_s, "decode_s": decode_s, "peak_rss_mb": peak_rss_mb()}
    after = joules()
    if before is not None and after is not None:
        found["joules"] = after - before
    return found


def tokens(vocabulary: int, count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, vocabulary), k=count)


def peak_rss_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def joules() -> float | None:
    """Of all processor packages since some time ago; None where RAPL cannot be read."""
    counters = Path("/sys/class/powercap").glob("intel-rapl:[0-9]*/energy_uj")
    try:
        values = [int(path.read_text()) for path in counters if path.parent.name.count(":") == 1]
    except (OSError, ValueError):
        return None
    return sum(values) / 1e6 if values else None


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ENGINES:
        import cli  # here: other engines' Pythons have no need of it

        cli.part_of("peers.py")
    name, model, *numbers = sys.argv[1:]
    print(json.dumps(ENGINES[name](model, *map(int, numbers))))
