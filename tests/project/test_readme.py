"""What the README says to type, typed.

Blocks are run from top to bottom, in a copy of the tracked files, so that a later command finds
what an earlier one has made:

- ```console: every line that begins with `$ ` is a command, with its continuation lines (a line
  that ends with a backslash goes on in the next); the other lines are output and are not compared.
- ```sh: every line is a command, but for blank lines and comments.
- ```python: a script of its own.
- Any other language, `text` for instance, is only shown.

`.venv` is this environment, so `make run` is a second run; `make test` is what runs this file, and
is left out. Standard input is closed: a chat ends at once. `stories.jsonl.xz` is there to train on.
A comment directly above a block, which readers do not see, changes what is done with it:

    <!-- test: with --max-steps 2 -->                  these words are added to each command
    <!-- test: in tests/project/test_wheel.py::test_name -->   that test stands for the block

and one above a ```text block says that the script before it prints this, and nothing else:

    <!-- test: printed above -->
"""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<how>with|in) (?P<what>.+?) -->\n)?"
    r"^```(?P<language>console|sh|python)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PRINTED = re.compile(
    r"\n<!-- test: printed above -->\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """One command or script of the README."""

    line: int
    language: str
    text: str
    stand_in: str | None = None  # the test that runs it in this one's place
    printed: str | None = None  # what it must print

    def __str__(self) -> str:
        return f"line {self.line}: {self.text.splitlines()[0]}"


def steps(readme: str) -> list[Step]:
    found = []
    for block in _BLOCK.finditer(readme):
        line = readme.count("\n", 0, block.start("body")) + 1
        language, how, what = block["language"], block["how"], block["what"]
        stand_in = what if how == "in" else None
        added = f" {what}" if how == "with" else ""
        texts = [block["body"]] if language == "python" else commands(block["body"], language)
        shown = _PRINTED.match(readme, block.end() + 1)
        printed = shown[1] if shown else None
        found += [Step(line, language, text + added, stand_in, printed) for text in texts]
    return found


def commands(body: str, language: str) -> list[str]:
    found = []
    for line in body.replace("\\\n", " ").splitlines():
        if language == "console":
            if line.startswith("$ "):
                found.append(line.removeprefix("$ "))
        elif line.strip() and not line.startswith("#"):
            found.append(line)
    return found


STEPS = steps(README.read_text(encoding="utf-8"))
RUN_HERE = [step for step in STEPS if step.text != "make test"]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, times of change included: `make` finds nothing to rebuild."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("readme") / ROOT.name
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    write_stories(copy / "stories.jsonl.xz")
    return copy


def write_stories(path: Path) -> None:
    """Four hundred stories of no sense, from the README's own words."""
    words = re.findall(r"[a-z]+", README.read_text(encoding="utf-8"))
    choice = random.Random(0)
    with lzma.open(path, "wt", encoding="utf-8", preset=0) as file:
        for _ in range(400):
            text = " ".join(choice.choices(words, k=80))
            file.write(json.dumps({"source": "tinystories", "text": text}) + "\n")


@pytest.mark.parametrize("step", RUN_HERE, ids=str)
def test_readme_step_works(step: Step, sandbox: Path) -> None:
    if step.stand_in is not None:
        file, _, name = step.stand_in.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
        return
    if step.text.startswith("make ") and not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("`make` did not make this environment, and would reinstall into it")
    command = [sys.executable, "-c", step.text]
    if step.language != "python":
        command = ["bash", "-euo", "pipefail", "-c", step.text]
    done = subprocess.run(
        command,
        cwd=sandbox,
        env={
            **os.environ,
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"$ {step.text}\n{done.stdout}{done.stderr}"
    assert step.printed in (None, done.stdout)


def test_readme_names_the_two_commands() -> None:
    assert {"make run", "make test"} <= {step.text for step in STEPS}


def test_steps_are_found_as_described() -> None:
    text = (
        "```console\n$ one \\\n    two\noutput\n$ three\n```\n"
        "```text\n$ shown\n```\n"
        "<!-- test: with --max-steps 2 -->\n```sh\n# a comment\ntrain it\n```\n"
        "<!-- test: in tests/test_a.py::test_b -->\n```sh\nmake test\n```\n"
        "```python\nprint(1)\nprint(2)\n```\n\n"
        "<!-- test: printed above -->\n```text\n1\n2\n```\n"
    )
    assert [(step.line, step.text, step.stand_in, step.printed) for step in steps(text)] == [
        (2, "one      two", None, None),
        (2, "three", None, None),
        (12, "train it --max-steps 2", None, None),
        (17, "make test", "tests/test_a.py::test_b", None),
        (20, "print(1)\nprint(2)\n", None, "1\n2\n"),
    ]
