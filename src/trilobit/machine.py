"""What a program needs to know about the machine: cores to use, memory there is and in use."""

from __future__ import annotations

import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from trilobit.cgroups import ROOT, cpu_limit, memory_limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """count: physical cores' worth of time for this process. cpus: threads that can run at once.

    why: what bounds the count, for people.
    """

    count: int
    cpus: int
    why: str


def cores(root: Path = ROOT, allowed: frozenset[int] | None = None) -> Cores:
    """What this process may use: two threads of a core share its multipliers.

    allowed: numbers of CPUs; default those of the process' affinity.
    """
    everything = os.cpu_count() or 1
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = frozenset(affinity(0) if affinity else range(everything))
    siblings = {_siblings(root, cpu) for cpu in allowed}
    # A core that does not tell its siblings counts as one without.
    count = len(allowed) if None in siblings else len(siblings)
    why = "physical cores" if len(allowed) >= everything else "physical cores of its CPU affinity"
    quota = cpu_limit(root)
    if quota is not None and _rounded(quota) < count:
        return Cores(
            count=_rounded(quota),
            cpus=math.ceil(quota),
            why=f"a CPU quota of {quota:.4g}",
        )
    cpus = len(allowed) if quota is None else min(len(allowed), math.ceil(quota))
    return Cores(count=max(1, count), cpus=cpus, why=why)


def _siblings(root: Path, cpu: int) -> str | None:
    try:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        return (folder / "thread_siblings_list").read_text()
    except OSError:
        return None


def _rounded(quota: float) -> int:
    """Threads for a quota: more stand still for a part of every period, fewer leave time unused."""
    return max(1, math.floor(quota + 0.5))


def available_cores() -> int:
    """Physical cores that this process may use, by affinity and the CPU quota of its group."""
    return cores().count


def warn_of_threads(threads: int) -> None:
    """A line where threads are so many that they can only wait for each other."""
    here = cores()
    if threads > here.cpus:
        logging.getLogger("trilobit").warning(
            "%d threads on %d %s can only wait for each other; leave out threads, or take %d",
            *(threads, here.cpus, "CPU" if here.cpus == 1 else "CPUs", here.count),
        )


def memory_bytes(root: Path = ROOT) -> int | None:
    """Physical memory, or what the process' group may have of it; None where nothing tells."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    limit = memory_limit(root)
    return physical if limit is None else min(physical, limit)


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB (10^6); 0 where unknown."""
    try:
        # Linux' ru_maxrss begins with that of the process which started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
