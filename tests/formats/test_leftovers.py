"""What a killed process leaves beside its target: the next one removes it, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from trilobit.formats.whole_directory import new_directory
from trilobit.formats.whole_file import WholeFile
from trilobit.synth import synth

pytest.importorskip("fcntl", reason="without locks nothing is removed")

UNFINISHED = """
import sys
from pathlib import Path
from trilobit.formats.whole_directory import new_directory
from trilobit.formats.whole_file import WholeFile
place = Path(sys.argv[1])
with WholeFile(place / "file", b"begun", 100), new_directory(place / "folder") as folder:
    (folder / "inner").write_text("begun")
    print("ready", flush=True)
    sys.stdin.read()
"""


def parts(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.name.endswith(".part"))


def write(place: Path) -> None:
    with WholeFile(place / "file", b"whole", 5):
        pass
    with new_directory(place / "folder") as folder:
        (folder / "inner").write_text("whole")


def test_parts_of_a_killed_process_are_removed_and_those_of_a_running_one_are_not(
    tmp_path: Path,
) -> None:
    others = [".file.part", ".file.x.part", ".file2.7.part", ".file.7.part.txt"]
    for name in others:
        (tmp_path / name).touch()
    command = [sys.executable, "-c", UNFINISHED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        theirs = [f".file.{running.pid}.part", f".folder.{running.pid}.part"]
        write(tmp_path)
        assert set(theirs) <= {*parts(tmp_path)}
        assert (tmp_path / theirs[1] / "inner").read_text() == "begun"
        running.kill()
        running.wait()
    assert set(theirs) <= {*parts(tmp_path)}  # nobody was there to remove them
    (tmp_path / "folder/inner").unlink()
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "file", "folder"}
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_killed_synth_can_be_begun_again(tmp_path: Path) -> None:
    program = (
        "import os, signal; from conftest import tiny_config; from trilobit.synth import synth\n"
        "kill = lambda progress: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"synth(tiny_config(), {str(tmp_path / 'tiny')!r}, progress=kill)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    assert killed.returncode < 0
    assert len(parts(tmp_path)) == 1
    synth(tiny_config(), tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
