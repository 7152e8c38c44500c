"""Tokens per second and memory of a model, next to the machine's limits of the same minutes.

A run is one prompt of random tokens and one greedy output, after a run that warms the caches up.
The limits are measured before every run, and a run is compared with the limits beside it.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trilobit import __version__, _native
from trilobit.bench.energy import Energy, measure_energy
from trilobit.bench.limits import measure_limits
from trilobit.engine.blocks import BLOCK, KvDtype, block_bytes, blocks_for
from trilobit.engine.options import Head
from trilobit.errors import RequestError
from trilobit.formats.packed.form import bytes_by_part
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.models import open_packed
from trilobit.llm import LLM
from trilobit.machine import cores, peak_rss_mb
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout, LayoutChoice, packed_shape
from trilobit.progress import Progress, Watch
from trilobit.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Median, smallest and largest of the runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Measure:
        """Of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What `measure_speed` found. MB and GB are powers of ten.

    decode_bytes_per_token: that must be read for one token, at the middle of the output, without
    what the MLPs of a relu² model skip.
    decode_fraction_of_dram: of reading those bytes at the machine's rate. prefill_fraction_of_int8:
    of multiplying the ternary weights at the machine's rate; all else that prefill does is loss.
    threads_why: what that number comes from. decode_threads: of a step of one token.
    gates_open, inputs_open: of each layer of a relu² model, the shares of `LLM.activity`.
    first_token_s: from nothing loaded to the first token of a prompt of one token.
    peak_rss_mb: the largest resident memory, what is mapped of the file included; 0 where the
    system does not tell. Of that, weights_mb is what tokens read, kv_cache_mb keeps the
    keys and values of prompt and output, and other_mb is all the rest.
    """

    model: str
    threads: int
    threads_why: str
    decode_threads: int
    isa: str
    head: str
    kv_dtype: KvDtype
    layout: Layout
    prompt_tokens: int
    generated_tokens: int
    runs: int
    gates_open: list[float]
    inputs_open: list[float]
    prefill_tokens_per_s: Measure
    decode_tokens_per_s: Measure
    dram_read_gb_per_s: Measure
    int8_gmac_per_s: Measure
    decode_fraction_of_dram: Measure
    prefill_fraction_of_int8: Measure
    decode_bytes_per_token: int
    load_s: float
    first_token_s: float
    peak_rss_mb: float
    weights_mb: float
    kv_cache_mb: float
    other_mb: float
    model_bytes: int
    machine: str
    version: str
    energy: Energy | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON values: each measure as its median under its name, and its range under `spread`."""
        values = dataclasses.asdict(self)
        spread = {}
        for field in dataclasses.fields(self):
            measure = getattr(self, field.name)
            if isinstance(measure, Measure):
                values[field.name] = measure.median
                spread[field.name] = [measure.least, measure.most]
        return {**values, "spread": spread}


def measure_speed(
    model: Path,
    *,
    prompt: int | None = None,
    generate: int,
    threads: int | None = None,
    runs: int = 5,
    head: Head = "auto",
    kv_dtype: KvDtype = "f16",
    layout: LayoutChoice | None = None,
    energy: bool = False,
    progress: Watch | None = None,
) -> Speed:
    """Measure `runs` runs of `prompt` tokens in and `generate` tokens out.

    prompt: None is 512, or as many as the context leaves. energy: joules a token, too.

    Raises RequestError when they do not fit the model's context.
    """
    _, longest = open_packed(model, lambda packed: packed.config.max_position_embeddings)
    if prompt is None:
        prompt = max(1, min(512, longest - generate))
    if prompt + generate > longest:
        raise RequestError(
            f"{prompt} + {generate} tokens are more than the context of {longest}; "
            "lower --prompt or --generate"
        )
    begun = time.perf_counter()
    llm = LLM(
        model,
        threads=threads,
        head=head,
        kv_dtype=kv_dtype,
        layout=layout,
        context=prompt + generate,
        kv_memory_mb=1,  # of one context at least: runs shall not keep those of others
        speculation=False,  # what a step takes, not how well random weights can be guessed
    )
    load_s = time.perf_counter() - begun
    llm.generate([0], SamplingParams(max_tokens=1, temperature=0).settled())
    first_token_s = time.perf_counter() - begun
    random = np.random.default_rng(0)
    greedy = SamplingParams(max_tokens=generate, temperature=0, ignore_eos=True).settled()
    weights = llm.config.ternary_parameters
    prefill, decode, dram, int8, of_dram, of_int8 = ([] for _ in range(6))
    for run in range(runs + 1):
        limits = measure_limits(llm.threads) if run else None
        ids = random.integers(0, llm.config.vocab_size, prompt).tolist()
        done = llm.generate(ids, greedy)
        if progress:
            progress(Progress(what="Measuring", done=run + 1, total=runs + 1))
        if limits is None:  # the first run warms up
            read_bytes = _decode_bytes(
                llm, prompt + generate // 2, kv_dtype, llm.activity(), llm.second_looks()
            )
            continue
        prefill.append(done.prefill_tokens_per_s)
        decode.append(done.decode_tokens_per_s)
        dram.append(limits.dram_read_gb_per_s)
        int8.append(limits.int8_gmac_per_s)
        of_dram.append(done.decode_tokens_per_s * read_bytes / limits.dram_read_gb_per_s * 1e-9)
        of_int8.append(done.prefill_tokens_per_s * weights / limits.int8_gmac_per_s * 1e-9)
    peak_mb = peak_rss_mb()
    activity = llm.activity()
    weights_mb = _decode_bytes(llm, 0, kv_dtype) / 1e6
    kv_cache_mb = blocks_for(llm.context) * block_bytes(llm.config, kv_dtype) / 1e6
    return Speed(
        model=str(model),
        threads=llm.threads,
        threads_why="as asked" if threads is not None else cores().why,
        decode_threads=llm.threads_for(1),
        isa=_native.isa(),
        kv_dtype=kv_dtype,
        layout=llm.layout,
        head="screened" if llm.head_is_screened else "full",
        prompt_tokens=prompt,
        generated_tokens=generate,
        runs=runs,
        gates_open=[gates for gates, _ in activity],
        inputs_open=[inputs for _, inputs in activity],
        prefill_tokens_per_s=Measure.of(prefill),
        decode_tokens_per_s=Measure.of(decode),
        dram_read_gb_per_s=Measure.of(dram),
        int8_gmac_per_s=Measure.of(int8),
        decode_fraction_of_dram=Measure.of(of_dram),
        prefill_fraction_of_int8=Measure.of(of_int8),
        decode_bytes_per_token=read_bytes,
        load_s=load_s,
        first_token_s=first_token_s,
        peak_rss_mb=peak_mb,
        weights_mb=weights_mb,
        kv_cache_mb=kv_cache_mb,
        other_mb=peak_mb - weights_mb - kv_cache_mb if peak_mb else 0.0,
        model_bytes=model.stat().st_size,
        machine=_machine(),
        version=__version__,
        energy=measure_energy(llm, prompt=prompt, generate=generate) if energy else None,
    )


def _decode_bytes(
    llm: LLM,
    position: int,
    kv_dtype: KvDtype,
    activity: list[tuple[float, float]] | None = None,
    second_looks: float = 1.0,
) -> int:
    """Bytes of the weights, the head and the keys and values that a token at `position` needs.

    activity: of what is skipped where it is zero, all is needed without it. second_looks: of the
    fine plane of the head's screen, this share is.
    """
    packed = PackedModel(llm.path)
    parts = bytes_by_part(packed.file.tensors)
    if llm.head_is_screened:
        fine = packed.file.info(tensor_names.FINE_CODES).size_bytes
        head = parts["screen"] - round((1 - second_looks) * fine)
    else:
        head = parts["embedding" if packed.config.tie_word_embeddings else "head"]
    ternary = 0.0
    for name, (rows, columns) in tensor_names.all_projections(packed.config):
        order = tensor_names.order(packed.config, name)
        size = float(math.prod(packed_shape(rows, columns, llm.layout, order)))
        if order != "groups" and activity:
            size *= activity[int(name.split(".")[2])][order == "columns"]
        ternary += size
    weights = round(ternary) + parts["norms"] + parts["scales"]
    if packed.config.ternary_embeddings and not packed.config.tie_word_embeddings:
        weights -= packed.file.info(tensor_names.EMBEDDING).size_bytes  # of which one row is read
    return weights + head + position * _kv_bytes(packed.config, kv_dtype)


def _kv_bytes(config: ModelConfig, kv_dtype: KvDtype) -> int:
    """Of one position."""
    return block_bytes(config, kv_dtype) // BLOCK


def _machine() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {platform.system()}"
