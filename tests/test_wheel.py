"""What is handed out: a wheel that tells a story without PyTorch, and a source archive."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from trilobit.bundled import DEFAULT

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists(), reason="tests of an installed package"
)


def build(hook: str, target: Path) -> Path:
    """Call one of the build backend's hooks, as pip does; compiled files are found in `build`."""
    program = f"from scikit_build_core import build; print(build.{hook}({str(target)!r}))"
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"  # cmake from pip
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_what_a_user_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "trilobit/py.typed" in names
    assert "trilobit/_native.pyi" in names
    assert f"trilobit/bundled/{DEFAULT}.trilobit" in names
    assert sum(name.startswith("trilobit/_native.") for name in names) == 2  # module and stub
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trilobit"}
    assert not [name for name in names if name.endswith((".a", ".h", ".cpp", ".pyc"))]


def test_wheel_is_small_enough_to_ship(wheel: Path) -> None:
    # 16 MB of model at most, and half a megabyte of everything else.
    assert wheel.stat().st_size < 17e6


def test_wheel_tells_a_story_without_pytorch(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'accelerate']))\n"  # not found
        "import trilobit\n"
        "from trilobit.cli import cli\n"
        f"assert trilobit.__file__.startswith({str(tmp_path)!r}), trilobit.__file__\n"
        "cli(['run', '--max-tokens', '20'])\n"
    )
    # -S: no .pth files, so that the editable installation does not stand before the wheel.
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), sysconfig.get_path("purelib")]),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert "20 tokens" in done.stderr


def test_source_archive_can_build_the_wheel(tmp_path: Path) -> None:
    archive = build("build_sdist", tmp_path)
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"}
    needed |= {"native/bindings/module.cpp", "native/kernels/all.inl"}
    needed |= {f"src/trilobit/bundled/{DEFAULT}.trilobit"}
    assert needed <= names
    assert not [name for name in names if name.startswith(("build/", "runs/", ".venv/"))]
