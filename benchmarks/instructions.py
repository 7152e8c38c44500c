"""How many instructions the core takes for the steps of the bundled model, beside what it took.

    python benchmarks/instructions.py [--keep] [--json FILE]

Counts, not times: callgrind counts what counted_steps.py runs, so a busy machine changes nothing.
Only instructions of the native module itself count, not Python's around it, nor those of libc and
libm, which choose their code by processor and version. Counts of one build are the same in every
run; another compiler gives others. They say nothing of memory, which bounds large models.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cli
from facts import RESULTS, check, facts, write

from trilobit import _native

KEPT = RESULTS / "instructions.json"
ISA = "avx2"  # valgrind knows nothing wider
NOTABLE_PERCENT = 3
HERE = Path(__file__).parent
# .comment of an ELF file, where gcc and clang leave their names
_COMPILER = re.compile(rb"GCC: \([\x20-\x7e]+|[\x20-\x7e]*clang version [\x20-\x7e]+")


def count() -> dict[str, int]:
    """Instructions of the native module, by part."""
    cc = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), "cc")
    with tempfile.TemporaryDirectory() as folder:
        marks, out = Path(folder) / "marks.so", Path(folder) / "counts"
        run(cc, "-shared", "-fPIC", "-O1", "-o", marks, HERE / "callgrind_marks.c")
        run(
            *("valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"),
            *(f"--callgrind-out-file={out}", sys.executable, HERE / "counted_steps.py", marks),
            TRILOBIT_ISA=ISA,
            PYTHONHASHSEED="0",
        )
        # One file for each part, numbered; that without a number is what was left at the end.
        files = sorted(out.parent.glob("counts.*"), key=lambda path: int(path.suffix[1:]))
        return dict(read(path.read_text(encoding="utf-8").splitlines()) for path in files)


def run(*command: str | Path, **environment: str) -> None:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        cli.fail(f"{Path(command[0]).name} failed: {lines[-1]}")


def read(lines: list[str]) -> tuple[str, int]:
    """The part that a file of callgrind is of, and the native module's own instructions in it."""
    part = next(line.split("Client Request: ")[1] for line in lines if "Client Request: " in line)
    names: dict[str, str] = {}  # an object's name is written once, then its number stands for it
    counts: Counter[str] = Counter()
    current, of_a_call = "", False
    for line in lines:
        if found := re.match(r"(c?)ob=(\(\d+\))(?: (.*))?$", line):
            called, number, name = found.groups()
            names.setdefault(number, name)
            current = current if called else names[number]
        elif line.startswith("calls="):
            of_a_call = True  # the next line has what the called function took
        elif found := re.match(r"(?:[+-]?\d+|\*) (\d+)$", line):
            counts[current] += 0 if of_a_call else int(found[1])
            of_a_call = False
        elif line.startswith("totals: ") and line != f"totals: {counts.total()}":
            cli.fail(f"callgrind has {line}, but its lines add up to {counts.total()}")
    return part, next(n for name, n in counts.items() if name.endswith(Path(_native.__file__).name))


def compiler() -> str:
    """Name and version of what the native module was built with, as it wrote them there."""
    names = set(_COMPILER.findall(Path(_native.__file__).read_bytes()))
    return "; ".join(sorted(name.decode("ascii") for name in names))


def notable(before: int | None, after: int | None) -> bool:
    """Whether a part changed by more than NOTABLE_PERCENT, came or went."""
    if before is None or after is None:
        return True
    return 100 * abs(after - before) > NOTABLE_PERCENT * before


def show(kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    print(f"{'instructions of ' + now['isa']:24}{'kept':>14}{'now':>14}{'change':>10}")
    some = False
    for part in kept["counts"] | now["counts"]:
        before, after = (side["counts"].get(part) for side in (kept, now))
        change = f"{after / before - 1:+.2%}" if before and after else ""
        shown = ("-" if n is None else f"{n:,}" for n in (before, after))
        line = f"{part:24}" + "".join(f"{text:>14}" for text in shown) + f"{change:>10}"
        print(f"{line}  <" if notable(before, after) else line)
        some = some or notable(before, after)
    if some:
        print(f"< changed by more than {NOTABLE_PERCENT} %: docs/benchmarks.md says what to do")
    else:
        print(f"nothing changed by more than {NOTABLE_PERCENT} %")
    if kept["isa"] != now["isa"]:
        print(f"kept of {kept['isa']}, now of {now['isa']}: these are not to be compared")
    if kept["compiler"] != now["compiler"]:
        print(
            f"kept of {kept['compiler']}, now of {now['compiler']}: "
            "a change may be the compiler's; compare with a build of the commit before"
        )


def counts_of(path: Path) -> dict[str, Any]:
    """What --json wrote there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lacking = lacks(found)
    except (OSError, ValueError) as error:
        lacking = str(error.strerror if isinstance(error, OSError) else error)
    if lacking:
        cli.fail(f"{path}: holds no counts ({lacking}); write some with --json")
    return dict(found)


def lacks(found: Any) -> str | None:
    """What counts must have and these have not."""
    if not isinstance(found, dict):
        return "no JSON object"
    for name in ("isa", "compiler"):
        if not isinstance(found.get(name), str):
            return f"no {name}"
    counts = found.get("counts")
    if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
        return "no counts by part"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="these are the counts to keep")
    parser.add_argument("--kept", type=Path, default=KEPT, help="compare with those of this file")
    parser.add_argument("--counted", type=Path, help="take counts that --json wrote; count nothing")
    parser.add_argument("--json", type=Path, help="write the counts here")
    arguments = parser.parse_args()
    check(arguments.json, arguments.kept if arguments.keep else None)
    first = arguments.keep and not arguments.kept.exists()
    kept = None if first else counts_of(arguments.kept)
    if arguments.counted:
        now = counts_of(arguments.counted)
    else:
        if not shutil.which("valgrind"):
            cli.fail("valgrind is not installed: apt-get install valgrind")
        if ISA not in _native.isas():
            cli.fail(f"this processor has no {ISA}, of which the kept counts are")
        now = {**facts(), "isa": ISA, "compiler": compiler(), "counts": count()}
    if kept:
        show(kept, now)
    if arguments.keep:
        write(arguments.kept, now)
    if arguments.json:
        write(arguments.json, now)


if __name__ == "__main__":
    cli.run(main)
