"""How the scripts meet people: bad input is one line and exit 2, Ctrl-C ends quietly with 130.

Scripts import this first: from then on Ctrl-C leaves no traceback, while their modules load.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
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
    from trilobit.cli.terminal import one_line

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
        package = _PACKAGES.get(error.name, error.name)
        return fail(f"{error.name} is not installed: {sys.executable} -m pip install {package}")
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


def _discard_output() -> None:
    """Keep the interpreter's own flush at exit from failing as ours did."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(number: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


# Whoever starts us may have Ctrl-C ignored: so it stays.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
