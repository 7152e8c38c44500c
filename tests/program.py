"""The real program, run as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_S = 120  # of a command that takes a second: the machine may be busy
BROKEN_PIPE, INTERRUPTED, TERMINATED, HUNG_UP = 141, 130, 143, 129

# The command after some lines of Python, for what cannot be set from outside.
AFTER = "\nimport runpy; runpy.run_module('trilobit', run_name='__main__', alter_sys=True)"
# Whoever started the tests may ignore Ctrl-C, and children inherit that.
HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


def trilobit(*args: object, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "trilobit", *map(str, args)],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        **options,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def succeed(*args: object, stdin: bytes = b"") -> str:
    """Its output, when it must succeed and say nothing else."""
    done = trilobit(*args, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def result(*args: object, stdin: bytes = b"") -> Any:
    """What it prints as JSON."""
    return json.loads(succeed(*args, "--json", stdin=stdin))


def fail(*args: object, stdin: bytes = b"") -> str:
    """Its error, which is one line and all that it says."""
    return error_of(trilobit(*args, stdin=stdin))


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .+\n", done.stderr)
    return done.stderr


def trilobit_after(python: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that first runs some lines of Python."""
    return subprocess.run(
        [sys.executable, "-c", python + AFTER, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def disk_full_at(size_bytes: int) -> str:
    """Python after which no file can grow beyond a size: what a full disk is to a program."""
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size_bytes},) * 2)"


# What is written gets its name at the end: nothing does, before somebody asks for an end.
UNNAMED = """
import sys, time
def wait(event, args):
    if event == "os.rename" and str(args[0]).endswith(".part"):
        time.sleep(600)
sys.addaudithook(wait)
"""


def signalled(
    *args: object,
    number: signal.Signals,
    when: Callable[[subprocess.Popen[bytes]], object],
    before: str = "",
) -> tuple[int, bytes, bytes]:
    """Run it, signal it once `when` returns; its exit code, stdout and stderr from then on.

    before: lines of Python. Of its output few pages are kept: it waits with more until they are
    read.
    """
    with subprocess.Popen(
        [sys.executable, "-c", f"{HEAR_CTRL_C}\n{before}{AFTER}", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what `when` does not read is left for `communicate`
        pipesize=4096,
    ) as process:
        try:
            when(process)
            process.send_signal(number)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return process.returncode, out, err


def part_appears(folder: Path) -> Callable[[subprocess.Popen[bytes]], None]:
    """Wait until something is being written in a folder, where nothing was."""

    def wait(process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not any(folder.rglob(".*.part")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    return wait


def first_byte(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.read(1)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
