"""The prompt of a command: words, a file, or what comes through stdin."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path
from textwrap import shorten

from trilobit.cli.terminal import note
from trilobit.errors import RequestError

_LONGEST_PROMPT = 16_000_000  # bytes; do not read /dev/zero to its end
_PATIENCE_S = 2  # until somebody who waits is told for what


def of_file(path: Path) -> str:
    """The text of a file, without one newline at its end."""
    try:
        with path.open("rb") as opened:
            data = opened.read(_LONGEST_PROMPT + 1)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
    return _not_empty(_text(data, str(path)), str(path))


def of_stdin() -> str:
    """The text that comes through stdin, without one newline at its end."""
    return _not_empty(_stdin(), "standard input")


def piped() -> str | None:
    """What comes through stdin, if it is no terminal and anything comes."""
    if sys.stdin is None or sys.stdin.isatty():
        return None
    return _stdin() or None


def check_model(model: str, remedy: str) -> None:
    """RequestError where what was given for a model can be none, most often a prompt.

    remedy: where prompts stand.
    """
    from trilobit.hub.names import near_names, resolve

    if any(map(str.isspace, model)) and not os.path.exists(model):
        raise RequestError(f"{shorten(model, 60)}: no such model; {remedy}")
    try:
        resolve(model)
    except RequestError as error:
        if near_names(model):  # a slip in a model's name
            raise
        raise RequestError(f"{error}; {remedy}") from None


def warn_of_model(prompt: str, command: str) -> None:
    """Say so where a prompt is the name of a model: it may be in the wrong place."""
    from trilobit.hub.names import is_known

    if is_known(prompt):
        note(
            f"{prompt} is the name of a model, and was taken for the prompt; "
            f"to run that model: {command} {prompt} PROMPT"
        )


def stdin_bytes(most: int) -> bytes:
    """What comes through stdin, to its end or to so many bytes."""
    if sys.stdin is None:
        raise RequestError("standard input is closed; pipe a text into it")
    _tell_who_waits()
    try:
        return sys.stdin.buffer.read(most)
    except OSError as error:  # a directory, a file open for writing only
        raise RequestError(
            f"standard input: cannot be read ({error.strerror}); pipe a text into it"
        ) from None


def _stdin() -> str:
    return _text(stdin_bytes(_LONGEST_PROMPT + 1), "standard input")


def _tell_who_waits() -> None:
    """Reading looks like a program that hangs, where nobody writes."""
    if sys.stdin.isatty():
        note("reading what you type; Ctrl-D at the beginning of a line ends it")
    elif sys.platform != "win32":  # where select takes sockets only
        try:
            ready, _, _ = select.select([sys.stdin], [], [], _PATIENCE_S)
        except (OSError, ValueError):
            return
        if not ready:
            note("waiting for text on standard input; < /dev/null leaves it out")


def _text(data: bytes, source: str) -> str:
    if len(data) > _LONGEST_PROMPT:
        raise RequestError(f"{source}: longer than any context; give at most 16 MB")
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _not_empty(text: str, source: str) -> str:
    if not text:  # somebody's mistake more often than a wish, which "" says
        raise RequestError(f'{source}: the prompt is empty; give at least a word, or "" as PROMPT')
    return text
