"""The `trilobit` command, also as `python -m trilobit`.

Nothing is imported here that takes long: Ctrl-C must end a command quietly from the first moment.
"""

from __future__ import annotations

# Of which `signal` is a face that takes a millisecond to load.
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Entry point of the `trilobit` command."""
    # While modules load, an exception would show where: a traceback. There is nothing to undo yet.
    # Whoever starts us may have Ctrl-C ignored: so it stays.
    heard = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    if heard:
        _signal.signal(_signal.SIGINT, _leave)
    _open_closed_streams()
    from trilobit.cli import main as run

    run(hears_ctrl_c=heard)


def _open_closed_streams() -> None:
    """Give closed standard streams to nobody.

    A file that is opened later would get the place of one, and all that is said there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the least number that is free
    if sys.stderr is None:  # where it is, `print` takes stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _leave(number: int, frame: FrameType | None) -> None:
    if sys.stderr is not None:
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
