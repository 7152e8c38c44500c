"""Where Trilobit keeps what it makes: one folder a user may move, and delete at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trilobit.errors import OutputError


def home() -> Path:
    """The folder for packed files: `TRILOBIT_HOME`, else the platform's place for caches."""
    chosen = os.environ.get("TRILOBIT_HOME")
    if chosen:
        return Path(os.path.expanduser(chosen)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.path.isabs(cache):  # the XDG specification: a relative path is ignored
        return Path(cache) / "trilobit"
    if sys.platform == "darwin":
        return _user_home() / "Library" / "Caches" / "trilobit"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "trilobit" / "Cache"
    return _user_home() / ".cache" / "trilobit"


def _user_home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry, as containers have them
        raise OutputError(
            "this user has no home directory; set TRILOBIT_HOME to a folder for models"
        ) from None
