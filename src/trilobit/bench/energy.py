"""Joules of a token: measured where the machine counts them, and estimated from the arithmetic.

Measured is what a counter of the system says (`counters`). It is of the whole machine part, of all
programs on it, so idle power is told apart.

Estimated is multiply-adds by type times what one costs in a 7 nm or 45 nm chip, as the BitNet
papers do: "The Era of 1-bit LLMs" (arXiv 2402.17764) after Zhang et al. 2022 and Horowitz 2014.
Moving data, most of the energy of a real machine, is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trilobit.bench.counters import Used, counters, used_by
from trilobit.llm import LLM
from trilobit.model.config import ModelConfig
from trilobit.sampling import SamplingParams

# picojoules of one (addition, multiplication)
_PICOJOULES = {
    "7 nm": {"int8": (0.007, 0.07), "float16": (0.16, 0.34), "float32": (0.38, 1.31)},
    "45 nm": {"int8": (0.03, 0.2), "float16": (0.4, 1.1), "float32": (0.9, 3.7)},
}
Process = Literal["7 nm", "45 nm"]
Arithmetic = Literal["int8", "float16", "float32"]
PROCESSES: tuple[Process, ...] = ("7 nm", "45 nm")


# ---- estimated --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Arithmetic of one token, by type: additions of weights that are -1, 0 or 1; products."""

    int8_additions: int
    float16_products: int  # each with its addition

    def joules(self, process: Process) -> float:
        """By the papers' table."""
        addition = _PICOJOULES[process]["int8"][0]
        product = sum(_PICOJOULES[process]["float16"])
        picojoules = self.int8_additions * addition + self.float16_products * product
        return picojoules * 1e-12


def operations(config: ModelConfig, position: int, *, head: bool = True) -> Operations:
    """Of a token that has `position` tokens before it. head: whether its logits are wanted.

    An addition for each ternary weight; products of float16 for attention and a head of floats.
    What has no matrix (norms, activations) is left out, as in the papers.
    """
    table = config.vocab_size * config.hidden_size
    additions = config.ternary_parameters
    if config.ternary_embeddings:  # counted there; of an embedding one row is read, without a sum
        additions -= table if config.tie_word_embeddings else 2 * table
        additions += head * table
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    products = attention * (position + 1)
    products += (head and not config.ternary_embeddings) * table
    return Operations(int8_additions=additions, float16_products=products)


def full_precision(ternary: Operations) -> Operations:
    """The same model with weights of float16."""
    products = ternary.int8_additions + ternary.float16_products
    return Operations(int8_additions=0, float16_products=products)


def estimates(
    config: ModelConfig, *, prompt: int, generate: int
) -> Iterator[dict[Process, tuple[float, float]]]:
    """Joules a token of prefill, then of decode: (ours, with float16 weights), by process.

    Of a prompt's tokens the last alone wants its logits; attention is that of the middle one.
    """
    for position, share in ((prompt // 2, 1 / prompt), (generate // 2, 1.0)):
        without, whole = (operations(config, position, head=head) for head in (False, True))
        twins = full_precision(without), full_precision(whole)
        yield {p: (_mix(without, whole, share, p), _mix(*twins, share, p)) for p in PROCESSES}


def _mix(without: Operations, whole: Operations, share: float, process: Process) -> float:
    """Joules where `share` of the tokens want their logits."""
    return (1 - share) * without.joules(process) + share * whole.joules(process)


def matrix_joules(products: int, arithmetic: Arithmetic, process: Process) -> tuple[float, float]:
    """(additions, multiplications) of so many products in full precision, in joules."""
    addition, multiplication = _PICOJOULES[process][arithmetic]
    return products * addition * 1e-12, products * multiplication * 1e-12


# ---- both -------------------------------------------------------------------------------------

_LEAST_S = 3.0  # of a phase that is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Joules of one token of a phase; measured ones are None where nothing counts.

    measured is of all that the counters see; above_idle without what they see of a machine that
    waits. estimated and estimated_float16 (the same model with float16 weights): by process.
    """

    measured: float | None
    above_idle: float | None
    estimated: dict[Process, float]
    estimated_float16: dict[Process, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What `measure_energy` found. source: the counters, or why there are none."""

    source: str
    idle_watts: float | None
    prefill: Phase
    decode: Phase


def measure_energy(
    llm: LLM, *, prompt: int, generate: int, sys_folder: Path = Path("/sys")
) -> Energy:
    """Joules a token of prompts of `prompt` tokens, and of outputs of `generate` tokens."""
    counted, source = counters(sys_folder)
    measured: list[Used] = []
    ids = np.random.default_rng(1).integers(0, llm.config.vocab_size, prompt).tolist()
    phases = ((ids, 1, prompt), ([0], generate, generate))
    tokens: list[int] = []
    if counted:
        try:
            measured.append(used_by(counted, lambda: time.sleep(_LEAST_S)))
            for one, output, each in phases:
                times = 0

                def work(one: list[int] = one, output: int = output) -> None:
                    nonlocal times
                    asked = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
                    greedy = asked.settled()
                    end = time.perf_counter() + _LEAST_S
                    while time.perf_counter() < end:
                        # Another first token, so that no prompt is in the cache.
                        llm.generate([times % llm.config.vocab_size, *one[1:]], greedy)
                        times += 1

                measured.append(used_by(counted, work))
                tokens.append(times * each)
            source = "measured: " + ", ".join(counter.name for counter in counted)
        except (OSError, ValueError) as error:
            measured, source = [], f"a counter could not be read ({error})"
    idle_watts = measured[0].joules / measured[0].seconds if measured else None
    made = []
    for number, estimated in enumerate(estimates(llm.config, prompt=prompt, generate=generate)):
        joules = above = None
        if idle_watts is not None:
            used = measured[number + 1]
            joules = used.joules / tokens[number]
            above = (used.joules - idle_watts * used.seconds) / tokens[number]
        made.append(
            Phase(
                measured=joules,
                above_idle=above,
                estimated={process: ours for process, (ours, _) in estimated.items()},
                estimated_float16={process: twin for process, (_, twin) in estimated.items()},
            )
        )
    return Energy(source=source, idle_watts=idle_watts, prefill=made[0], decode=made[1])
