"""What a run makes of its text once: kept in its folder, checked, never exchanged in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import read_bytes
from trilobit.train.checkpoint import fill
from trilobit.train.sums import check_sums, read_sums, write_sums

_ABOUT = "corpus.json"
_MAX_ABOUT_BYTES = 1 << 16


def kept(
    folder: Path,
    key: str,
    write: Callable[[Path], dict[str, Any]],
    *,
    tells: tuple[str, ...],
    text: str,
    begun: bool,
) -> dict[str, Any]:
    """Let `write` make the folder, unless what is there has this key and is whole.

    write: fills an empty folder, and returns what is to be known of it; that comes back.
    tells: the keys of it. text: names the text, for messages.
    begun: a model was trained on what was made, so that it may not become another.
    Raises RecipeError for another text then, FormatError for what is lost, OutputError when it
    cannot be written.
    """
    sums = _sums(folder, key, tells, text, begun=begun)
    if sums is None or _is_damaged(folder):
        expected = sums if begun else None

        def make(partial: Path) -> None:
            about = {"key": key, **write(partial)}
            (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
            if expected not in (None, write_sums(partial)):
                raise RecipeError(
                    f"{folder}: is damaged, and its text gives other tokens with the versions of "
                    "today; put it back, or --fresh to begin anew"
                )

        fill(folder, make)
    return _about(folder, tells)


def _sums(
    folder: Path, key: str, tells: tuple[str, ...], text: str, *, begun: bool
) -> dict[str, str] | None:
    """Checksums of what lies there, if it is of this text."""
    try:
        about, sums = _about(folder, tells), read_sums(folder)
    except FormatError as error:
        if not begun:
            return None
        raise FormatError(
            f"{folder}: the checkpoints beside it were trained on its tokens, and what they were "
            f"is lost ({str(error).removeprefix(f'{folder}/')}); put it back, or --fresh to begin "
            "anew"
        ) from error
    if about["key"] == key:
        return sums
    if begun:
        raise RecipeError(
            f"{folder.parent}: its checkpoints were trained on other text than {text} holds now; "
            "choose another --output, or --fresh to delete them"
        )
    return None


def _is_damaged(folder: Path) -> bool:
    try:
        check_sums(folder)
    except FormatError:
        return True
    return False


def _about(folder: Path, tells: tuple[str, ...]) -> dict[str, Any]:
    """What corpus.json says; FormatError when it is not there, or not whole."""
    path = folder / _ABOUT
    try:
        about = json.loads(read_bytes(path, _MAX_ABOUT_BYTES))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or not {"key", *tells} <= set(about):
        raise FormatError(f"{path}: damaged")
    return about
