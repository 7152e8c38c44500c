"""What Linux' control groups let this process have: a container's or a service's share.

A process is in a group of each hierarchy (`/proc/self/cgroup`), whose folder lies under where the
hierarchy is mounted (`/proc/self/mountinfo`). A group never has more than the groups around it, so
the least limit along the path counts. Version 2 is one hierarchy, version 1 one for each resource;
many systems mount both. cgroups(7); Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
# Of a hierarchy that has all controllers, in place of their names
_VERSION_2 = ""


def cpu_limit(root: Path = ROOT) -> float | None:
    """CPUs' worth of time, such as 1.5; None without a limit."""
    limits = []
    for folder in _folders("cpu", root):
        quota, period = _words(folder / "cpu.max", 2)
        if quota is None:  # version 1
            quota, period = (
                _number(folder / "cpu.cfs_quota_us"),
                _number(folder / "cpu.cfs_period_us"),
            )
        if quota and period:
            limits.append(quota / period)
    return min(limits, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes; None without a limit. Above `memory.high` a process is slowed to a crawl."""
    limits = (
        _number(folder / name)
        for folder in _folders("memory", root)
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
    )
    # Version 1 writes "none" as the largest number of whole pages.
    return min((limit for limit in limits if limit and limit < 1 << 60), default=None)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Of the groups that this process is in, the innermost first."""
    mounts = list(_mounts(root))
    groups = list(_groups(root))
    if not mounts:  # masked: where they usually are
        at = Path("sys/fs/cgroup")
        mounts = [("/", at, {_VERSION_2}), ("/", at / controller, {controller})]
        groups = groups or [("/", {_VERSION_2}), ("/", {controller})]
    for base, at, kinds in mounts:
        for path, controllers in groups:
            if kinds & controllers & {controller, _VERSION_2}:
                yield from _up(base, root / at, path)


def _up(base: str, mounted: Path, path: str) -> Iterator[Path]:
    """From a group's folder to where its hierarchy is mounted.

    base: the group that the mount begins with. Inside a container it may be one that the path does
    not name, or the path one that the mount does not show: then the mount itself is the group.
    """
    inside = [part for part in path.split("/") if part]
    above = [part for part in base.split("/") if part]
    parts = inside[len(above) :] if inside[: len(above)] == above else []
    if ".." in parts or not mounted.joinpath(*parts).is_dir():
        parts = []
    for count in range(len(parts), -1, -1):
        yield mounted.joinpath(*parts[:count])


def _groups(root: Path) -> Iterator[tuple[str, set[str]]]:
    """Each group as (its path, its hierarchy's controllers)."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            yield path, set(controllers.split(","))


def _mounts(root: Path) -> Iterator[tuple[str, Path, set[str]]]:
    """Each hierarchy as (the group it begins with, the folder below root, its controllers)."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        about, kind = before.split(), after.split()
        if len(about) < 5 or not kind or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = {_VERSION_2} if kind[0] == "cgroup2" else set(kind[-1].split(","))
        yield _unescaped(about[3]), Path(_unescaped(about[4]).lstrip("/")), controllers


def _unescaped(text: str) -> str:
    for character in " \t\n\\":
        text = text.replace(f"\\{ord(character):03o}", character)
    return text


def _number(path: Path) -> int | None:
    """A positive number; None for "max", -1 and files that are not there."""
    return _words(path, 1)[0]


def _words(path: Path, count: int) -> list[int | None]:
    words = " ".join(_lines(path)).split()[:count]
    numbers = [int(word) if word.isdecimal() and int(word) > 0 else None for word in words]
    return numbers + [None] * (count - len(numbers))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
