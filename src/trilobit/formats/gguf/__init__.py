"""GGUF, the files of llama.cpp and its relatives: read strictly, written whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def is_gguf(path: Path) -> bool:
    """Whether a file is one, or claims to be by its name: what it is then is said in full."""
    if path.suffix.lower() == ".gguf":
        return True
    with suppress(OSError, ValueError):
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(4) == b"GGUF"
    return False
