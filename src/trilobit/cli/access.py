"""Where a server listens, who may ask it and how much, as `trilobit serve` and `front` are told."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.cli.command import option
from trilobit.cli.number import Number
from trilobit.cli.path import FilePath
from trilobit.errors import RequestError

if TYPE_CHECKING:
    from starlette.applications import Starlette

KEY_VARIABLE = "TRILOBIT_API_KEY"
LIMITS = "Limits"
_ACCESS = "Who may ask"
_WHERE = (
    click.option(
        "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where."
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8080,
        show_default=True,
        metavar="N",
        help="0 takes a free one.",
    ),
    click.option("--tls-cert", type=FilePath(), help="Certificate (PEM), for https."),
    click.option("--tls-key", type=FilePath(), help="Its private key (PEM)."),
)
_WHO = (
    option(
        _ACCESS,
        "--api-key",
        "keys",
        multiple=True,
        metavar="KEY",
        help="Repeatable. Others see it in "
        f"the list of processes: better use --api-key-file or {KEY_VARIABLE}.",
    ),
    option(_ACCESS, "--api-key-file", type=FilePath(), help="Keys, one a line."),
    option(_ACCESS, "--no-api-key", is_flag=True, help="Serve other machines without any key."),
    option(
        _ACCESS,
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="NAME",
        help="A name that this machine is asked by, such as that of a proxy. Repeatable.",
    ),
    option(
        _ACCESS,
        "--cors",
        "origins",
        multiple=True,
        metavar="ORIGIN",
        help="A page that may ask: https://app.example. Repeatable.",
    ),
)
_BOUNDS = (
    click.option("--json-logs", is_flag=True, help="A line of JSON on stderr for every request."),
    option(
        LIMITS,
        "--body-mb",
        type=click.IntRange(1, 1024),
        default=4,
        show_default=True,
        metavar="N",
        help="Megabytes of a request.",
    ),
    option(
        LIMITS,
        "--drain-s",
        type=Number(0, 86_400),
        default=30,
        show_default=True,
        metavar="S",
        help="Seconds that answers may still take when it is told to stop.",
    ),
)


def where_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--host`, `--port`, `--tls-cert` and `--tls-key`."""
    for add in reversed(_WHERE):
        command = add(command)
    return command


def who_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--api-key`, `--api-key-file`, `--no-api-key`, `--allow-host` and `--cors`."""
    for add in reversed(_WHO):
        command = add(command)
    return command


def bound_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--json-logs`, `--body-mb` and `--drain-s`."""
    for add in reversed(_BOUNDS):
        command = add(command)
    return command


def listen(
    make_app: Callable[[], Starlette],
    what: str,
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> None:
    """Serve an app until it is told to stop. what: is served, for people."""
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key: give both, or none")
    from trilobit.serve.server import address_of, bind, check_tls, run

    tls = (str(tls_cert), str(tls_key)) if tls_cert and tls_key else None
    if tls is not None:
        check_tls(*tls)
    with bind(host, port) as sock:
        address = address_of(sock, tls=tls is not None)
        run(
            make_app(),
            sock,
            ready=lambda: print(f"Serving {what} at {address}", flush=True),
            tls=tls,
        )


def access_of(
    host: str,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    *,
    no_api_key: bool,
) -> dict[str, Any]:
    """Keys, hosts and origins as `Settings` has them."""
    every_key = keys_of(keys, api_key_file)
    here = is_loopback(host)
    if not here and not every_key and not no_api_key:
        raise click.UsageError(
            f"--host {host} lets other machines in: give --api-key-file, or --no-api-key"
        )
    if every_key and no_api_key:
        raise click.UsageError("--no-api-key: there are keys; leave out one or the other")
    return {
        "keys": every_key,
        # Who has no key gets nothing, by whatever name.
        "hosts": None if every_key and not here else frozenset(map(str.lower, (host, *hosts))),
        "origins": tuple(map(origin_of, origins)),
    }


def keys_of(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """Keys of options, the environment and a file; RequestError for what cannot be one."""
    keys = [*given, *os.environ.get(KEY_VARIABLE, "").split()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split()
        except UnicodeDecodeError:
            raise RequestError(f"{file}: is no text; expected keys, one a line") from None
        except OSError as error:
            raise RequestError(
                f"{file}: cannot be read ({error.strerror}); give a file of keys, one a line"
            ) from None
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
