"""Where Trilobit keeps what it makes: one folder a user may move, and delete at any time."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The folder for packed files: `TRILOBIT_HOME`, else the platform's place for caches."""
    chosen = os.environ.get("TRILOBIT_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache and os.path.isabs(cache):  # the XDG specification: a relative path is ignored
        return Path(cache) / "trilobit"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "trilobit"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "trilobit" / "Cache"
    return Path.home() / ".cache" / "trilobit"
