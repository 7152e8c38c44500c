"""A directory that appears under its name only when everything is in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trilobit.errors import OutputError
from trilobit.formats.leftovers import Hold, part_of, remove_leftovers
from trilobit.formats.whole_file import write_remedy


@contextmanager
def new_directory(out: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A directory to write into, which becomes `out` when the block ends well.

    replaces: in the place of one that is there. On any error, Ctrl-C included, nothing is left of
    it. Raises OutputError when `out` is there already and may not be replaced (an empty directory
    may be), or cannot be written.
    """
    if not replaces:
        _check_free(out)
    remove_leftovers(out)
    temporary = part_of(out)
    hold: Hold | None = None
    try:
        temporary.mkdir()
        hold = Hold(temporary)
        yield temporary
        if replaces:
            put(temporary, out)
        else:
            if os.path.isdir(out):
                out.rmdir()
            os.replace(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OutputError) and str(temporary) in str(error):
            raise OutputError(str(error).replace(str(temporary), str(out))) from None
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise OutputError(
                f"{out}: cannot be written ({error.strerror}); {write_remedy(error)}"
            ) from None
        raise
    finally:
        if hold is not None:
            hold.close()


def put(written: Path, out: Path) -> None:
    """Give a directory that is whole its name, in the place of one that has it."""
    shutil.rmtree(out, ignore_errors=True)
    os.replace(written, out)


def _check_free(out: Path) -> None:
    if out == Path("-"):
        raise OutputError("-: no folder can be on standard output; name one")
    if not os.path.lexists(out):
        return
    if not os.path.isdir(out) or os.path.islink(out):
        raise OutputError(f"{out}: exists and is no directory; choose another name")
    if os.listdir(out):
        raise OutputError(f"{out}: a directory with something in it; choose another name")
