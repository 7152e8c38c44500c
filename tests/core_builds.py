"""The core by itself, built in folders of their own under `build/native`, and its test program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILDS = ROOT / "build" / "native"


def need(*commands: str) -> None:
    missing = [command for command in commands if shutil.which(command) is None]
    if missing and os.environ.get("TRILOBIT_REQUIRE_CROSS"):
        pytest.fail(f"{', '.join(missing)} not found, and TRILOBIT_REQUIRE_CROSS asks for it")
    if missing:
        pytest.skip(f"{', '.join(missing)} not found; .ci/run installs what is needed")


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,  # a lost wake-up must fail, not hang
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-8000:]}"
    return done.stdout


def build(name: str, target: str, compiler: str, **options: str) -> Path:
    """Build `target` in a folder of its own, every warning an error; returns the folder."""
    need(compiler)
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"  # cmake from pip
    folder = BUILDS / name
    settings = {
        "CMAKE_CXX_COMPILER": compiler,
        "TRILOBIT_PYTHON": "OFF",
        "TRILOBIT_TESTS": "ON",
        "TRILOBIT_WERROR": "ON",
        **options,
    }
    defines = [f"-D{key}={value}" for key, value in settings.items()]
    run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *defines, env={"PATH": path})
    run("cmake", "--build", folder, "--target", target, env={"PATH": path})
    return folder


def native_tests(folder: Path, *isas: str, emulator: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Run it; returns the instruction sets that were `available` and `tested`."""
    need(*emulator[:1])
    output = run(*emulator, folder / "native_tests", *isas)
    return {
        name: names.split() for name, names in re.findall(r"^(\w+):(.*)$", output, re.MULTILINE)
    }


# ---- right on every processor ------------------------------------------------------------------
