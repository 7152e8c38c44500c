"""The `trilobit` command, also as `python -m trilobit`.

Nothing is imported here that takes long: Ctrl-C must end a command quietly from the first moment.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point of the `trilobit` command."""
    # While modules load, an exception would show where: a traceback. There is nothing to undo yet.
    # Whoever starts us may have Ctrl-C ignored: so it stays.
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from .cli import main as run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
