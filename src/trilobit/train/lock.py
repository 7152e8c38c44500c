"""One run at a time in a folder: two would write over each other's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from trilobit.errors import OutputError
from trilobit.formats.whole_file import write_remedy


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make a run's folder and hold it; the system lets go of it when the process ends.

    Raises OutputError when another process holds it, or it cannot be written.
    """
    path = output / "lock"
    lock = FileLock(path)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"{output}: another run is at work there; wait for its end, or choose another --output"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        remedy = "choose another --output"
        if isinstance(error, OSError):
            remedy = write_remedy(error, remedy)
        raise OutputError(f"{output}: cannot write there ({reason}); {remedy}") from error
    try:
        yield
    finally:
        # While it is held: whoever waits sees that the name is another file's by then.
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()
