"""Recipes and texts from anybody: one short line, in bounded time and memory."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_recipes import RECIPES, SOUND, SOUND_YAML, write

MEMORY_BYTES = 1 << 29  # of address space; the interpreter and numpy have reserved half of it
TIMEOUT_S = 60  # for one input, on a busy machine; each takes less than a second on a quiet one
LONGEST_LINE = 500

# Limits itself, reads every file that stdin names, and tells what came of it.
READER = f"""
import json, resource, signal, sys
from pathlib import Path
from trilobit.errors import RecipeError
from trilobit.train.recipes import load_recipe
from trilobit.train.data.documents import documents
# Threads of numerical libraries reserve much, and never use it.
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {MEMORY_BYTES}, used + {MEMORY_BYTES}))
signal.signal(signal.SIGALRM, signal.SIG_DFL)
for line in sys.stdin:
    kind, path = json.loads(line)
    signal.alarm({TIMEOUT_S})
    try:
        if kind == "recipe":
            load_recipe(Path(path))
        else:
            for _ in documents(Path(path)):
                pass
        answer = None
    except RecipeError as error:
        answer = str(error)
    print(json.dumps([path, answer]), flush=True)
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory and /proc")


def read_under_limits(kind: str, paths: list[Path]) -> dict[str, str | None]:
    """What each file is refused with; None where it is not. Fails for whoever breaks a limit."""
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input="".join(json.dumps([kind, str(path)]) + "\n" for path in paths),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    answers = dict(json.loads(line) for line in done.stdout.splitlines())
    if done.returncode:
        pytest.fail(f"{paths[len(answers)].name}: exit {done.returncode}\n{done.stderr[-2000:]}")
    assert done.stderr == ""
    return answers


@linux
def test_hostile_recipes_are_one_short_line_in_bounded_time_and_memory(tmp_path: Path) -> None:
    answers = read_under_limits("recipe", write(tmp_path))
    assert len(answers) == len(RECIPES)
    for path, answer in answers.items():
        assert answer is not None, path
        assert answer.startswith(f"{path}: ")
        assert len(answer) < len(path) + LONGEST_LINE, path
        assert answer.isprintable(), path


@linux
def test_the_sound_recipes_among_them_are_read(tmp_path: Path) -> None:
    sound = {"sound.toml": SOUND, "sound.yaml": SOUND_YAML, "sound.yml": SOUND_YAML}
    names = ", ".join(f'"folder.with.points/text.{n}.txt"' for n in range(90))
    sound["names.toml"] = SOUND.replace('"a.txt"', names)
    sound["comment.toml"] = f"# {'.' * 200}\n{SOUND}"
    for name, text in sound.items():
        (tmp_path / name).write_text(text)
    answers = read_under_limits("recipe", [tmp_path / name for name in sound])
    assert set(answers.values()) == {None}


@linux
def test_a_recipe_that_is_no_regular_file_is_one_line(tmp_path: Path) -> None:
    fifo, zero, folder = tmp_path / "f.toml", tmp_path / "z.yaml", tmp_path / "d.toml"
    os.mkfifo(fifo)
    zero.symlink_to("/dev/zero")
    folder.mkdir()
    for path, answer in read_under_limits("recipe", [fifo, zero, folder]).items():
        what = "a directory" if path == str(folder) else "a pipe or device"
        assert answer == f"{path}: cannot read the recipe ({what})"


@linux
def test_a_text_that_is_no_regular_file_is_one_line(tmp_path: Path) -> None:
    fifo, link, zero = tmp_path / "f.txt", tmp_path / "l.jsonl.xz", tmp_path / "z.jsonl"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    zero.symlink_to("/dev/zero")
    for path, answer in read_under_limits("text", [fifo, link, zero]).items():
        assert answer is not None
        assert answer.startswith(f"{path}: cannot read the training text (a pipe or device); check")


@linux
@pytest.mark.parametrize("name", ["bomb.jsonl.xz", "bomb.txt.xz", "bomb.jsonl", "bomb.txt"])
def test_a_line_without_end_is_one_line_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".xz":
        # Streams of .xz may stand behind each other: 2 GB in some hundred kB.
        path.write_bytes(lzma.compress(b"a" * (1 << 24), preset=0) * 128)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 31)  # zeros that take no room
    (answer,) = read_under_limits("text", [path]).values()
    assert answer == f"{path}: line 1 has more than 8 MB; make several of it"


@linux
def test_a_line_of_many_json_objects_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text('{"text": "a", "x": [' + "[]," * 2_000_000 + "0]}\n")
    assert read_under_limits("text", [path]) == {str(path): None}
