"""What a program needs to know about the machine: cores to use, memory there is and in use."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def available_cores() -> int:
    """Physical cores that this process may use: two threads of a core share its multipliers."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            return len(allowed)
    quota = _cgroup_cpus()
    return max(1, min(len(cores), quota) if quota else len(cores))


def _cgroup_cpus() -> int | None:
    """The container's CPU limit; more threads than it would only wait for each other."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def memory_bytes() -> int | None:
    """Physical memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


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
