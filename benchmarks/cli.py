"""How the scripts meet people: bad input is one line and exit 2, Ctrl-C ends quietly with 130.

Scripts import this first: from then on Ctrl-C leaves no traceback, while their modules load.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

MOST_THREADS = 1024
_PACKAGES = {"llama_cpp": "llama-cpp-python"}  # named otherwise than what is imported of them


def run(main: Callable[[], None]) -> None:
    """Run a script's main and exit."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = _code(main)
    finally:
        # Nothing is left to stop: another Ctrl-C would only make a traceback of the exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def whole(least: int = 1, most: int = 1 << 20) -> Callable[[str], int]:
    """An argparse type: whole numbers from least to most."""

    def number(text: str) -> int:
        if text.isdecimal() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")

    return number


def fail(message: str) -> Any:
    """Say in one line what is wrong, and exit."""
    from trilobit.console import one_line

    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def _code(main: Callable[[], None]) -> int:
    from trilobit.errors import TrilobitError

    try:
        main()
        sys.stdout.flush()  # a full disk may show only now
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trilobit"):
            raise
        return fail(_missing(error.name))
    except BrokenPipeError:  # the reader went away (`| head`)
        _discard_output()
        return 141
    except TrilobitError as error:
        return fail(str(error))
    except OSError as error:
        if error.filename is not None:
            return fail(f"{error.filename}: {error.strerror}")
        _discard_output()
        return fail(f"standard output: cannot be written ({error.strerror or error})")


def _missing(name: str) -> str:
    package = _PACKAGES.get(name, name)
    return f"{name} is not installed: {sys.executable} -m pip install {package}"


def _discard_output() -> None:
    """Keep the interpreter's own flush at exit from failing as ours did."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(number: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


def part_of(script: str) -> None:
    """For a file that a script uses, when somebody runs it by itself."""
    print(f"{Path(sys.argv[0]).name} is a part of {script}; see python benchmarks/{script} --help")
    sys.exit(0 if _HELP & set(sys.argv) else 2)


_HELP = {"-h", "--help"}


def _not_installed(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What a script needs before it can read its arguments: help does without."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        sys.__excepthook__(kind, error, trace)
    elif _HELP & set(sys.argv):
        print(sys.modules["__main__"].__doc__)
        sys.stdout.flush()
        os._exit(0)
    else:
        print(f"error: {_missing(error.name)}", file=sys.stderr, flush=True)
        os._exit(2)


sys.excepthook = _not_installed

# Whoever starts us may have Ctrl-C ignored: so it stays.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)

if __name__ == "__main__":
    part_of("kernels.py")
