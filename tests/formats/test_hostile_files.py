"""Every hostile file is refused in one line, with bounded time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import hostile_files
import pytest

# An interpreter with numpy and its threads reserves some 1.5 GB; the largest file is 48 MB. What
# this guards against took 1.2 GB more.
ADDRESS_BYTES = 2_500_000_000
SECONDS = 60  # catches what hangs; each takes one


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))


def refused(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trilobit", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=_limit,
        timeout=SECONDS,
    )
    assert done.returncode == 2, done.stderr[-500:]
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr[-500:]
    assert len(done.stderr) < 600, done.stderr[:600]
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not kept elsewhere")
def test_every_hostile_file_is_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.trilobit"
    for path in hostile_files.make(tmp_path):
        try:
            refused("convert", path, out)
        except AssertionError as error:
            raise AssertionError(f"{path.name}: {error}") from None
        assert not out.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is not kept elsewhere")
def test_hostile_golden_values_are_refused_in_one_line(model_file: Path, tmp_path: Path) -> None:
    for path in hostile_files.make_golden(tmp_path):
        refused("verify", model_file, "--golden", path)
