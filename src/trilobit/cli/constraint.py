"""Options that say what an output must be."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trilobit.cli.command import option
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

_GROUP = "What comes out"
_LONGEST_SCHEMA = 4_000_000  # bytes; what is too long is told by its characters

_OPTIONS = [
    option(
        _GROUP,
        "--json-schema",
        metavar="FILE|JSON",
        help='JSON that fits a schema; {"type": "object"} is any object.',
    ),
    option(_GROUP, "--regex", metavar="REGEX", help="A text that it matches as a whole."),
    option(_GROUP, "--choice", multiple=True, metavar="TEXT", help="One of these. Repeatable."),
    option(
        _GROUP, "--min-tokens", type=int, metavar="N", default=0, help="Do not end before N tokens."
    ),
]


def constraint_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command with `params`, which then says what the output must be."""

    @functools.wraps(command)
    def constrained(
        *,
        params: SamplingParams,
        json_schema: str | None,
        regex: str | None,
        choice: tuple[str, ...],
        min_tokens: int,
        **rest: Any,
    ) -> None:
        schema = None if json_schema is None else _schema(json_schema)
        changed = dataclasses.replace(
            params, json_schema=schema, regex=regex, choice=choice or None, min_tokens=min_tokens
        )
        command(params=changed, **rest)

    decorated: Callable[..., None] = constrained
    for add in reversed(_OPTIONS):
        decorated = add(decorated)
    return decorated


def _schema(given: str) -> str:
    """JSON as it is, or the text of a file."""
    if given.lstrip().startswith("{"):
        return given
    try:
        path = Path(given)
        if not given or not os.path.exists(path):
            raise RequestError(
                f"--json-schema {given!r:.80}: no such file, and no JSON of a schema, which begins "
                "with {"
            )
        with path.open("rb") as file:
            return file.read(_LONGEST_SCHEMA).decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); give a file") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text (byte {error.start})") from None
