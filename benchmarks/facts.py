"""What a result must say beside its figures: where, of what, and by which command they come."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cli

from trilobit.bench.speed import Measure, _machine
from trilobit.errors import OutputError
from trilobit.formats.whole_file import WholeFile, check_place

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"


def facts() -> dict[str, Any]:
    """Machine, commit (with + where files were changed), versions, date and command."""
    script = Path(sys.argv[0]).name
    return {
        "machine": _machine(),
        "load": _load(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _changed() else ""),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trilobit", "numpy")},
        },
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
    }


def measured(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, to four digits."""
    measure = Measure.of(list(values))
    return {name: float(f"{getattr(measure, name):.4g}") for name in ("median", "least", "most")}


def check(*paths: Path | None) -> None:
    """OutputError for a result that could not be written, before it is measured."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise OutputError(f"{path}: a directory; name a file")
        if path.parent == RESULTS:  # source archives are without it
            RESULTS.mkdir(exist_ok=True)
        check_place(path)


def write(path: Path, result: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all; says where. Raises OutputError."""
    text = (json.dumps(result, indent=1) + "\n").encode("utf-8")
    with WholeFile(path, text, len(text)):
        pass
    print(f"written to {path}")


def _load() -> float | None:
    """Processes that wanted to run in the last minute; many spoil a measurement."""
    try:
        return round(float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0]), 2)
    except (OSError, ValueError):
        return None


def _changed() -> bool:
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", "native", "src"))


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    cli.part_of("peers.py")
