"""Running a program that a model has written, where it can do no harm.

Bubblewrap (`bwrap`, Linux) gives it namespaces of its own: no network, no process but its own, no
variable of ours, and of our files only Python's and the system's libraries, to be read. It has an
empty folder in memory, and limits of time, memory, files and processes. What that does not hold is
a fault of the kernel itself.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from trilobit.errors import RequestError

_SECONDS = 10
_MEMORY_BYTES = 1 << 30
_FILE_BYTES = 1 << 20
_FOLDER_BYTES = 16 << 20
_PROCESSES = 64
_FILES = 64
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")


def check_sandbox() -> None:
    """RequestError where programs cannot be kept apart."""
    if shutil.which("bwrap") is None:
        raise RequestError(
            "what a model writes is run only in a sandbox, and there is no bubblewrap (`bwrap`) "
            "here; install it (Linux: apt install bubblewrap)"
        )
    if not runs_through(""):
        raise RequestError(
            "bubblewrap (`bwrap`) cannot keep programs apart here: it is not allowed namespaces"
        )


def runs_through(program: str) -> bool:
    """Whether a Python program reaches its end, without an error and within its limits."""
    # A program that leaves with 0 before its end must not look as if it had come there.
    sign = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        source, said = Path(folder, "program.py"), Path(folder, "said")
        source.write_text(f"{program}\nprint()\nprint({sign!r})\n", encoding="utf-8")
        with said.open("wb") as out:
            try:
                done = subprocess.run(
                    _command(source),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.DEVNULL,
                    timeout=_SECONDS,
                    preexec_fn=_limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
        return done.returncode == 0 and said.read_bytes().endswith(f"\n{sign}\n".encode())


def _command(source: Path) -> list[str]:
    seen = [path for path in (*_SYSTEM, sys.base_prefix) if os.path.exists(path)]
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"),
        *(word for path in seen for word in ("--ro-bind", path, path)),
        *("--dev", "/dev", "--proc", "/proc"),
        *("--size", str(_FOLDER_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"),
        *("--ro-bind", str(source), "/program.py"),
        *(os.path.realpath(sys.executable), "-I", "/program.py"),
    ]


def _limit() -> None:
    """In the process that becomes the program."""
    import resource  # not on Windows, where there is no bwrap either

    for kind, most in (
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_NPROC, _PROCESSES),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
