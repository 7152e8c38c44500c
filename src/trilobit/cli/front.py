"""`trilobit front`: one address for several servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trilobit.cli.access import access_of, listen, where_options, who_options
from trilobit.cli.command import Command, option

_LIMITS = "Limits"


@click.command(
    "front",
    cls=Command,
    examples=[
        (
            "trilobit front http://127.0.0.1:8081 http://127.0.0.1:8082",
            "Two servers of this machine.",
        ),
        (
            "trilobit front http://10.0.0.2:8080 http://10.0.0.3:8080 --port 8000",
            "Two of other machines.",
        ),
    ],
)
@click.argument("servers", nargs=-1, required=True, metavar="SERVER...")
@where_options
@click.option("--json-logs", is_flag=True, help="A line of JSON on stderr for every request.")
@who_options
@option(
    _LIMITS,
    "--body-mb",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    metavar="N",
    help="Megabytes of a request.",
)
@option(
    _LIMITS,
    "--drain-s",
    type=click.FloatRange(0, 86_400),
    default=30,
    show_default=True,
    metavar="S",
    help="Seconds that answers may still take when it is told to stop.",
)
def command(
    servers: tuple[str, ...],
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    json_logs: bool,
    body_mb: int,
    drain_s: float,
    **access: Any,
) -> None:
    """Pass on to SERVERs (`trilobit serve`, by address) what is asked here.

    A conversation goes to the server that knows its beginning. When one dies, its answers end with
    an error, and those of the others go on. Keys are passed on: servers take the same ones.
    """
    urls = [_url(server) for server in servers]
    if len(set(urls)) < len(urls):
        raise click.UsageError("SERVER: one is named twice")
    from trilobit.serve.front import create_front
    from trilobit.serve.settings import Settings

    settings = Settings(
        models={},
        body_bytes=body_mb << 20,
        drain_s=drain_s,
        json_logs=json_logs,
        **access_of(host, **access),
    )
    listen(
        lambda: create_front(settings, urls), f"{len(urls)} servers", host, port, tls_cert, tls_key
    )


def _url(given: str) -> str:
    scheme, separator, rest = given.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not separator or not rest or set("/?#@ ") & set(rest):
        raise click.UsageError(f"{given:.80}: expected an address, as http://127.0.0.1:8081")
    return f"{scheme}://{rest}"
