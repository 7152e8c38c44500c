"""The code of the pages runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_convert_is_the_function_whatever_was_imported_before() -> None:
    program = (
        "import trilobit, trilobit.conversion, trilobit.cli.convert\n"
        "from trilobit import convert\n"
        "assert convert is trilobit.conversion.convert, convert\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("python.md", 4),
        ("structured.md", 3),
        ("evaluation.md", 1),
        ("start.md", 1),
        ("ar.md", 1),
    ],
)
def test_the_code_of_a_page_runs(page: str, count: int) -> None:
    code = blocks(page, "python")
    assert len(code) == count
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout


def test_the_commands_of_a_page_run(tmp_path: Path) -> None:
    (tmp_path / "child.json").write_text('{"enum": ["Tom"]}')
    lines = "".join(blocks("structured.md", "sh")).splitlines()
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "trilobit"
        done = subprocess.run(
            [sys.executable, "-m", program, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert (done.stderr, done.returncode) == ("", 0)


def test_the_recipes_of_the_tutorials_are_understood(tmp_path: Path) -> None:
    recipes = pytest.importorskip("trilobit.train.recipes", exc_type=ImportError)
    found = blocks("tutorials.md", "toml")
    kinds = []
    for number, text in enumerate(found):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, encoding="utf-8")
        kinds.append(type(recipes.load_recipe(path)).__name__)
    assert kinds == ["Pretrain", "Distill"]
