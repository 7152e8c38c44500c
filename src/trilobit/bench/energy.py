"""Joules of a token: measured where the machine counts them, and estimated from the arithmetic.

Measured is what a counter of the system says: the processor's packages and their memory by RAPL
(Linux' powercap, of Intel and AMD), the sockets by amd_energy (hwmon), or a battery that is being
discharged. It is of the whole machine part, of all programs on it, so idle power is told apart.

Estimated is multiply-adds by type times what one costs in a 7 nm or 45 nm chip, as the BitNet
papers do: "The Era of 1-bit LLMs" (arXiv 2402.17764) after Zhang et al. 2022 and Horowitz 2014.
Moving data, most of the energy of a real machine, is not in it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

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
_EVERY_S = 0.2  # a counter is read: long before it wraps, and power is summed in such steps


# ---- measured ---------------------------------------------------------------------------------


class Counter(Protocol):
    """One thing that counts energy. name: of what, and who says so."""

    name: str

    def joules(self) -> float:
        """Used since the last call; OSError or ValueError when it cannot be read."""


class _Counted:
    """A file of microjoules, which begins again from 0 behind `most`."""

    def __init__(self, name: str, path: Path, most: int | None) -> None:
        self.name, self._path, self._most = name, path, most
        self._last = _number(path)

    def joules(self) -> float:
        now = _number(self._path)
        used = now - self._last
        if used < 0 and self._most is not None:
            used += self._most + 1
        self._last = now
        return max(0, used) / 1e6


class _Battery:
    """The power that a battery gives, as often as it is asked."""

    def __init__(self, folder: Path) -> None:
        self.name = f"battery {folder.name}"
        self._folder = folder
        self._watts()
        self._last = time.perf_counter()

    def joules(self) -> float:
        now = time.perf_counter()
        used = self._watts() * (now - self._last)
        self._last = now
        return used

    def _watts(self) -> float:
        if (self._folder / "power_now").exists():
            return abs(_number(self._folder / "power_now")) / 1e6
        microamperes = abs(_number(self._folder / "current_now"))
        return microamperes * _number(self._folder / "voltage_now") / 1e12


def counters(sys_folder: Path = Path("/sys")) -> tuple[list[Counter], str]:
    """What counts energy here, and if nothing does, why, with the remedy where there is one."""
    if sys.platform != "linux":
        return [], f"no energy counter is read on {sys.platform}; Linux has them in /sys"
    reasons = []
    for find in (_rapl, _hwmon, _batteries):
        try:
            found = list(find(sys_folder))
        except PermissionError as error:
            reasons.append(f"{error.filename} may be read by root only")
        except (OSError, ValueError) as error:
            reasons.append(str(error))
        else:
            if found:
                return found, ""
    nothing = "this machine (or its hypervisor) shows no energy counter in /sys"
    return [], "; ".join(reasons) or nothing


def _rapl(sys_folder: Path) -> Iterator[Counter]:
    zones = sorted((sys_folder / "class/powercap").glob("*:*"))
    for zone in zones:
        with suppress(FileNotFoundError):
            name = _text(zone / "name")
            # Cores are inside the package; psys has all of it, but not on every machine.
            if name.startswith("package") or name == "dram":
                most = _number(zone / "max_energy_range_uj")
                label = name if name.startswith("package") else f"dram of {zone.name}"
                yield _Counted(f"RAPL {label}", zone / "energy_uj", most)


def _hwmon(sys_folder: Path) -> Iterator[Counter]:
    for folder in sorted((sys_folder / "class/hwmon").glob("hwmon*")):
        with suppress(FileNotFoundError):
            if _text(folder / "name") != "amd_energy":
                continue
            for path in sorted(folder.glob("energy*_input")):
                label = _text(path.with_name(path.name.replace("_input", "_label")))
                if label.startswith("Esocket"):  # the cores are inside
                    yield _Counted(f"hwmon {label}", path, None)


def _batteries(sys_folder: Path) -> Iterator[Counter]:
    for folder in sorted((sys_folder / "class/power_supply").glob("*")):
        with suppress(FileNotFoundError):
            if _text(folder / "type") == "Battery" and _text(folder / "status") == "Discharging":
                yield _Battery(folder)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _number(path: Path) -> int:
    text = _text(path)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path} holds {text!r:.40}, no number") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What some work took."""

    joules: float
    seconds: float


def used_by(counted: list[Counter], work: Callable[[], object]) -> Used:
    """Do some work and read the counters meanwhile.

    Raises OSError or ValueError when a counter can be read no longer; the work is done then, too.
    """
    joules, failed, done = 0.0, [], threading.Event()

    def read() -> None:
        nonlocal joules
        try:
            joules += sum(counter.joules() for counter in counted)
        except (OSError, ValueError) as error:
            failed.append(error)

    def watch() -> None:
        while not done.wait(_EVERY_S) and not failed:
            read()

    read()
    joules = 0.0
    begun = time.perf_counter()
    watcher = threading.Thread(target=watch, name="trilobit-energy", daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    read()
    if failed:
        raise failed[0]
    return Used(joules=joules, seconds=time.perf_counter() - begun)


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
                    greedy = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True)
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
    for number, (position, share) in enumerate(((prompt // 2, 1 / prompt), (generate // 2, 1.0))):
        joules = above = None
        if idle_watts is not None:
            used = measured[number + 1]
            joules = used.joules / tokens[number]
            above = (used.joules - idle_watts * used.seconds) / tokens[number]
        without, whole = (operations(llm.config, position, head=head) for head in (False, True))
        made.append(
            Phase(
                measured=joules,
                above_idle=above,
                estimated={p: _mix(without, whole, share, p) for p in PROCESSES},
                estimated_float16={
                    p: _mix(full_precision(without), full_precision(whole), share, p)
                    for p in PROCESSES
                },
            )
        )
    return Energy(source=source, idle_watts=idle_watts, prefill=made[0], decode=made[1])


def _mix(without: Operations, whole: Operations, share: float, process: Process) -> float:
    """Joules where `share` of the tokens want their logits."""
    return (1 - share) * without.joules(process) + share * whole.joules(process)
