"""Wheels by zig's compiler, and what they are tried with: other Pythons, other C libraries."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import core_builds
import pytest

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PATH = {"PATH": os.environ["PATH"]}
PROGRAM = "from trilobit.__main__ import main; main()"
STORY = ("run", "--max-tokens", "20", "--seed", "1")

takes_minutes = pytest.mark.skipif(
    not os.environ.get("TRILOBIT_RELEASE"), reason="builds wheels for minutes: make release-check"
)


def run(*command: str | Path, **env: str) -> str:
    """What a command prints, with nothing of our environment but what is given."""
    done = subprocess.run(
        command,
        env={"HOME": os.environ.get("HOME", "/"), "PYTHONUTF8": "1", **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=7200,  # of a hang; a wheel takes minutes
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def wheels(out: Path, *targets: str, work: Path | None = None) -> dict[str, Path]:
    """Build the wheels of `targets`: found by kind and machine, such as "abi3 x86_64"."""
    place = () if work is None else ("--work", work)
    command = (sys.executable, ROOT / "packaging/wheels.py", "--out", out, *place, *targets)
    told = run(*command, **{key: os.environ[key] for key in os.environ if key != "PYTHONPATH"})
    found = [out / name for name in re.findall(r"\S+\.whl", told)]
    machine = re.compile("(x86_64|aarch64)$")
    return {f"{w.stem.split('-')[3]} {machine.findall(w.stem)[0]}": w for w in found}


def packaging() -> Any:
    """The program that builds the wheels, as a module."""
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "packaging/wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


def install(wheel: Path, site: Path, python: str, *platforms: str) -> None:
    """Put a wheel, and what it needs, into a folder for a Python that need not run pip."""
    pip = (sys.executable, "-m", "pip", "install", "-q", "--target", site)
    # Else pip asks whether what it chose for that Python runs by its own.
    foreign = ("--python-version", python, "--only-binary", ":all:", "--ignore-requires-python")
    run(*pip, *foreign, *(f"--platform={name}" for name in platforms), wheel, **os.environ)


def debian(machine: str, *wanted: str, suite: str | None = None) -> Path:
    """The folder with packages of Debian for a machine, perhaps another, unpacked once.

    apt downloads them from where this system has its own packages from, with books of its own.
    """
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if shutil.which("dpkg-deb") is None or not sources.exists():
        pytest.skip("needs Debian's apt")
    root = ROOT / "build/debian" / f"{machine}-{wanted[0]}"
    if not (root / "apt/done").exists():
        for folder in ("lists/partial", "archives/partial"):
            (root / "apt" / folder).mkdir(parents=True, exist_ok=True)
        (root / "apt/status").touch()
        settings = {
            "APT::Architecture": machine,
            "APT::Architectures": machine,
            "APT::Sandbox::User": "root",
            "Dir::Cache": f"{root}/apt",
            "Dir::State::Lists": f"{root}/apt/lists",
            "Dir::State::Status": f"{root}/apt/status",
            "Debug::NoLocking": "1",
        }
        if suite is not None:
            ours = sources.read_text().split("\n\n")[0]
            (root / "apt/parts").mkdir(exist_ok=True)
            (root / "apt/parts/s.sources").write_text(re.sub("Suites:.*", f"Suites: {suite}", ours))
            settings |= {"Dir::Etc::SourceList": "/dev/null"}
            settings |= {"Dir::Etc::SourceParts": f"{root}/apt/parts"}
        apt = ("apt-get", "-qq", "-y", *(f"-o{key}={value}" for key, value in settings.items()))
        run(*apt, "update", **os.environ)
        run(*apt, "install", "--no-install-recommends", "--download-only", *wanted, **os.environ)
        for package in sorted((root / "apt/archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, root, **os.environ)
        (root / "apt/done").touch()
    return root


def core_tests(target: str, folder: Path) -> Path:
    """The core's test program by the compiler of a wheel, so with its C and C++ libraries."""
    wheels = packaging()
    wheels.make_tools("abi3")
    defines = wheels.make_compiler(wheels.TARGETS[target], wheels.find_zig(), ROOT, folder)
    compiler = defines.pop("CMAKE_CXX_COMPILER")
    return core_builds.build(target, "native_tests", compiler, **defines)
