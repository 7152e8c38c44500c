"""What counts energy in this machine, and what some work takes by it.

The processor's packages and their memory by RAPL (Linux' powercap, of Intel and AMD), the sockets
by amd_energy (hwmon), or a battery that is being discharged: the first of them that is there.
Beside a processor's counters NVIDIA's GPUs by NVML, where `nvidia-ml-py` is installed. The work is
the processor's, not theirs; so alone they are no measure of it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_EVERY_S = 0.2  # a counter is read: long before it wraps, and power is summed in such steps
# Where no counter is read -> what is there, and what reading it would take.
_MISSING = {
    "darwin": "macOS: what it counts is told by its powermetrics, to root only",
    "win32": "Windows: what it counts is read through a driver of its maker's only",
}


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


class _Gpu:
    """A GPU of NVIDIA's, which counts millijoules since its driver was loaded."""

    def __init__(self, number: int, nvml: Any) -> None:
        self._nvml, self._device = nvml, nvml.nvmlDeviceGetHandleByIndex(number)
        self.name = f"NVML GPU {number} ({nvml.nvmlDeviceGetName(self._device)})"
        self._last = self._millijoules()

    def joules(self) -> float:
        now = self._millijoules()
        used = now - self._last
        self._last = now
        return max(0, used) / 1e3

    def _millijoules(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))
        except self._nvml.NVMLError as error:
            raise OSError(f"{self.name}: {error}") from None


def counters(sys_folder: Path = Path("/sys")) -> tuple[list[Counter], str]:
    """What counts energy here, and if nothing does, why, with the remedy where there is one."""
    if sys.platform in _MISSING:
        return [], f"no energy counter is read on {_MISSING[sys.platform]}"
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
            if found:  # what a battery gives has the GPUs in it
                return found if find is _batteries else [*found, *_gpus()], ""
    reasons += [f"{gpu.name} counts, but not the processor, which does the work" for gpu in _gpus()]
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


def _gpus() -> list[Counter]:
    """Those that count (since Volta); they stand beside others, so without one nothing is wrong."""
    try:
        import pynvml
    except ImportError:
        return []
    found: list[Counter] = []
    with suppress(pynvml.NVMLError):  # no driver
        pynvml.nvmlInit()  # until the process ends: the counters are read in a thread of their own
        for number in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError, OSError):
                found.append(_Gpu(number, pynvml))
    return found


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

    begun = time.perf_counter()  # before a battery's own clock, or it would seem to give too much
    read()
    joules = 0.0
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
