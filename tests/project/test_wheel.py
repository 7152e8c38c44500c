"""What is handed out: a wheel that tells a story without PyTorch, and a source archive."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from trilobit.bundled import ARABIC, CHAT, DEFAULT

ROOT = Path(__file__).parents[2]

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


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", tmp_path_factory.mktemp("sdist"))


def test_wheel_holds_what_a_user_needs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "trilobit/py.typed" in names
    assert "trilobit/_native.pyi" in names
    assert {f"trilobit/bundled/{model}.trilobit" for model in (DEFAULT, CHAT, ARABIC)} <= set(names)
    assert {f"trilobit/bundled/{model}.md" for model in (DEFAULT, CHAT, ARABIC)} <= set(names)
    assert wheel.stat().st_size < 30_000_000
    page = ROOT / "src/trilobit/serve/page"
    files = [p for p in page.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {p.relative_to(ROOT / "src").as_posix() for p in files} <= set(names)
    assert sum(name.startswith("trilobit/_native.") for name in names) == 2  # module and stub
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trilobit"}
    assert not [name for name in names if name.endswith((".a", ".h", ".cpp", ".pyc"))]


def metadata(archive: Path) -> Message:
    """What a package index is told of a wheel or of a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            name = next(n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
            return message_from_bytes(file.read(name))
    with tarfile.open(archive) as tar:
        name = next(n for n in tar.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
        member = tar.extractfile(name)
        assert member is not None
        return message_from_bytes(member.read())


def test_links_of_the_description_lead_somewhere_from_a_package_index(
    wheel: Path, sdist: Path
) -> None:
    for archive in (wheel, sdist):
        told = metadata(archive)
        urls = dict(value.split(", ", 1) for value in told.get_all("Project-URL", []))
        assert {"Source", "Documentation", "Issues", "Changelog"} <= urls.keys()
        assert told["Description-Content-Type"] == "text/markdown"
        payload = told.get_payload(decode=True)
        assert isinstance(payload, bytes)
        links = re.findall(r"\]\(([^)]+)\)", payload.decode())
        assert len(links) > 15
        for link in links:
            if link.startswith("#"):
                continue
            base, _, path = link.partition("/main/")
            assert base in (f"{urls['Source']}/blob", f"{urls['Source']}/raw"), link
            assert (ROOT / path.partition("#")[0]).is_file(), link
        assert f"]({urls['Source']}/raw/main/docs/peers.svg)" in payload.decode()


def test_wheel_holds_the_licences_of_all_that_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        texts = {n.rpartition("/")[2]: file.read(n).decode() for n in file.namelist() if ".md" in n}
        texts |= {
            n.rpartition("/")[2]: file.read(n).decode()
            for n in file.namelist()
            if ".dist-info/licenses/" in n
        }
    assert texts["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
    for model in (DEFAULT, CHAT, ARABIC):
        assert texts[f"{model}.md"] == (ROOT / f"models/{model}/README.md").read_text("utf-8")
    assert "Sharing - Version 1.0" in texts["CDLA-Sharing-1.0.txt"]
    # As in what is compiled in, here and now.
    nanobind = importlib.metadata.distribution("nanobind")
    licence = next(p for p in nanobind.files or () if p.name == "LICENSE")
    assert texts["nanobind.txt"] == licence.read_text()
    header = Path(str(nanobind.locate_file("nanobind/ext/robin_map/include/tsl/robin_map.h")))
    comment = header.read_text(encoding="utf-8").partition("*/")[0]
    words = re.sub(r"^( \*|/\*\*)", "", comment, flags=re.MULTILINE).split()
    assert texts["robin-map.txt"].split() == words
    for name, owner in (  # of the chat page's libraries
        ("preact.txt", "Jason Miller"),
        ("htm.txt", "Apache License"),
        ("marked.txt", "MarkedJS"),
        ("dompurify.txt", "Apache License"),
        ("highlight.txt", "Ivan Sagalaev"),
    ):
        assert owner in texts[name], name
    assert metadata(wheel)["License-Expression"] == "MIT AND BSD-3-Clause AND Apache-2.0"


def test_wheel_is_small_enough_to_ship(wheel: Path) -> None:
    # 28 MB of models at most, and half a megabyte of everything else.
    assert wheel.stat().st_size < 30e6


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


def test_source_archive_can_build_the_wheel(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"}
    needed |= {"native/bindings/module.cpp", "native/kernels/all.inl"}
    for model in (DEFAULT, CHAT, ARABIC):
        needed |= {f"src/trilobit/bundled/{model}.trilobit", f"models/{model}/README.md"}
    needed |= {"packaging/readme.py", "licenses/nanobind.txt", "licenses/robin-map.txt"}
    assert needed <= names
    assert not [name for name in names if name.startswith(("build/", "runs/", ".venv/"))]
