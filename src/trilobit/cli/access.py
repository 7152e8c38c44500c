"""Who may ask a server, as `trilobit serve` is told: keys, origins, addresses."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import click

from trilobit.errors import RequestError

KEY_VARIABLE = "TRILOBIT_API_KEY"


def keys_of(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """Keys of options, the environment and a file; RequestError for what cannot be one."""
    keys = [*given, *os.environ.get(KEY_VARIABLE, "").split()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split()
        except UnicodeDecodeError:
            raise RequestError(f"{file}: is no text; expected keys, one a line") from None
        if not lines:
            raise RequestError(f"{file}: has no key; write one into it, one a line")
        keys += lines
    for key in keys:
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            raise RequestError("a key is empty, or has signs that no header can carry")
    return tuple(dict.fromkeys(keys))


def origin_of(given: str) -> str:
    """A page's origin, as browsers write it."""
    scheme, separator, rest = given.partition("://")
    if not separator or not rest or "/" in rest or "*" in rest or not scheme:
        raise click.UsageError(f"--cors {given:.80}: expected an origin, as https://app.example")
    return given.lower()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
