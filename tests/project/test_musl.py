"""The wheels for musl, the C library of Alpine: what a system needs to run them, and no compiler.

They take minutes: `make release-check`.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import core_builds
import pytest
from wheel_builds import (
    DIST,
    PATH,
    PROGRAM,
    STORY,
    core_tests,
    debian,
    install,
    packaging,
    run,
    takes_minutes,
    wheels,
)

from trilobit import _native

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # and Debian's names of them

pytestmark = takes_minutes


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """By kind and machine; left in `dist`."""
    return wheels(DIST, *(f"musl-{machine}" for machine in MACHINES))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a program of x86-64")
@pytest.mark.parametrize("machine", MACHINES)
def test_core_is_right_with_musl(machine: str, tmp_path: Path) -> None:
    """Linked in, as Linux needs nothing else for it."""
    emulator = () if machine == "x86_64" else ("qemu-aarch64", "-cpu", "max")
    folder = core_tests(f"musl-{machine}", tmp_path)
    done = core_builds.native_tests(folder, emulator=emulator)
    assert done["tested"] == done["available"]
    assert done["tested"] == (_native.isas() if machine == "x86_64" else ["scalar", "neon"])


SYMBOLS = """
import io, sys, zipfile
from elftools.elf.elffile import ELFFile
def symbols(file):
    return list(ELFFile(file).get_section_by_name(".dynsym").iter_symbols())
wheel = zipfile.ZipFile(sys.argv[1])
(module,) = (name for name in wheel.namelist() if name.endswith(".so"))
needed = {s.name for s in symbols(io.BytesIO(wheel.read(module)))
          if s["st_shndx"] == "SHN_UNDEF" and s["st_info"]["bind"] == "STB_GLOBAL"}
has = {s.name for s in symbols(open(sys.argv[2], "rb")) if s["st_shndx"] != "SHN_UNDEF"}
assert len(needed) > 100 and "malloc" in has
print(*(name for name in needed - has if not name.startswith(("Py", "_Py"))))
"""


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kind", ["cp311", "abi3"])
def test_musl_has_all_that_its_wheel_asks_for(
    built: dict[str, Path], kind: str, machine: str
) -> None:
    libc = next(debian(MACHINES[machine], "musl").glob("usr/lib/*-linux-musl/libc.so"))
    python = packaging().make_tools("abi3") / "bin/python"  # which has what auditwheel reads with
    assert run(python, "-c", SYMBOLS, built[f"{kind} {machine}"], libc).split() == []


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_nothing_beside_a_musl_wheel_has_to_be_compiled(
    built: dict[str, Path], python: str, machine: str, tmp_path: Path
) -> None:
    kind = "cp311" if python == "3.11" else "abi3"
    install(built[f"{kind} {machine}"], tmp_path, python, f"musllinux_1_2_{machine}")
    assert list((tmp_path / "numpy").rglob("*-linux-musl.so"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a wheel of x86-64")
def test_musl_wheel_tells_a_story(built: dict[str, Path], tmp_path: Path) -> None:
    """By a Python of its own C library: docs/log.md says how to make one."""
    if (python := os.environ.get("TRILOBIT_MUSL_PYTHON")) is None:
        pytest.skip("TRILOBIT_MUSL_PYTHON names no Python that is linked with musl")
    version = run(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    wheel = built["cp311 x86_64" if version == "3.11" else "abi3 x86_64"]
    install(wheel, tmp_path / "site", version, "musllinux_1_2_x86_64")
    there = run(python, "-c", PROGRAM, *STORY, PYTHONPATH=str(tmp_path / "site"), **PATH)
    assert there == run(sys.executable, "-c", PROGRAM, *STORY, **PATH)
