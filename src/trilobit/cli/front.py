"""`trilobit front`: one address for several servers, which run already or are started by it."""

from __future__ import annotations

import difflib
import re
import secrets
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from trilobit.cli.access import (
    KEY_VARIABLE,
    access_of,
    bound_options,
    listen,
    where_options,
    who_options,
)
from trilobit.cli.command import Command

if TYPE_CHECKING:
    from trilobit.serve.servers import Servers

_MOST_SERVERS = 64


def _count(_: click.Context, __: click.Parameter, given: str | None) -> tuple[int, int] | None:
    """`2`, or `1-4`: how many at least, and at most."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", given)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most <= _MOST_SERVERS:
        raise click.BadParameter(
            f"{given!r:.40}: expected how many, as 2 or 1-4, at most {_MOST_SERVERS}"
        )
    return least, most


@click.command(
    "front",
    cls=Command,
    # What is not known here is for `trilobit serve`.
    context_settings={"ignore_unknown_options": True},
    examples=[
        (
            "trilobit front http://127.0.0.1:8081 http://127.0.0.1:8082",
            "Two servers of this machine.",
        ),
        (
            "trilobit front http://10.0.0.2:8080 http://10.0.0.3:8080 --port 8000",
            "Two of other machines.",
        ),
        (
            "trilobit front --servers 1-4 bitnet-2b --threads 4",
            "One, and up to four when many ask.",
        ),
    ],
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SERVER... | MODEL...")
@click.option(
    "--servers",
    callback=_count,
    metavar="N|MIN-MAX",
    help="Start so many here: `trilobit serve` with the MODELs and other options given.",
)
@where_options
@who_options
@bound_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    servers: tuple[int, int] | None,
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

    With --servers it starts them itself, and another for one that dies; SIGHUP replaces them one at
    a time, and loses no answer.
    """
    bounds = ["--body-mb", str(body_mb), "--drain-s", str(drain_s), *["--json-logs"] * json_logs]
    urls = _urls(ctx, words) if servers is None else []
    own = None if servers is None else _servers(ctx, words, bounds, *servers)
    from trilobit.serve.front import create_front
    from trilobit.serve.settings import Settings

    settings = Settings(
        models={},
        body_bytes=body_mb << 20,
        drain_s=drain_s,
        json_logs=json_logs,
        **access_of(host, **access),
    )
    count = "-".join(map(str, sorted(set(servers)))) if servers else len(urls)
    with ExitStack() as stack:
        if own is not None:  # none outlives this process, from the first moment on
            stack.callback(own.kill)
        listen(
            lambda: create_front(settings, urls, own),
            f"{count} server{'' if count in (1, '1') else 's'}",
            host,
            port,
            tls_cert,
            tls_key,
        )


def _servers(
    ctx: click.Context, words: tuple[str, ...], bounds: list[str], least: int, most: int
) -> Servers:
    """Those of `trilobit serve WORDS`, which are looked at before any is started."""
    from trilobit.cli.serve import command as serve
    from trilobit.machine import available_cores
    from trilobit.serve.servers import Servers

    address = next((word for word in words if "://" in word), None)
    if address is not None:
        raise click.UsageError(
            f"{address:.80}: --servers starts servers of MODELs here; leave it out to pass on to "
            "servers that run",
            ctx=ctx,
        )
    given = serve.make_context("serve", [*words, *bounds], parent=ctx.parent).params
    if given["request_log"] is not None:
        raise click.UsageError("--request-log: several servers cannot write one log")
    parts = [] if given["threads"] else ["--threads", str(max(1, available_cores() // most))]
    key = secrets.token_urlsafe(32)
    return Servers(
        [sys.executable, "-m", "trilobit", "serve", "--port", "0", *bounds, *parts, *words],
        {KEY_VARIABLE: key},
        key=key,
        least=least,
        most=most,
        places=given["max_sequences"],
    )


def _urls(ctx: click.Context, words: tuple[str, ...]) -> list[str]:
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            known = [one for param in ctx.command.params for one in param.opts]
            near = difflib.get_close_matches(name, known)
            raise click.NoSuchOption(name, possibilities=near, ctx=ctx)
    if not words:
        raise click.UsageError("name at least one SERVER, or start some with --servers", ctx=ctx)
    urls = [_url(word) for word in words]
    if len(set(urls)) < len(urls):
        raise click.UsageError("SERVER: one is named twice")
    return urls


def _url(given: str) -> str:
    scheme, separator, rest = given.rstrip("/").partition("://")
    plain = scheme in ("http", "https") and separator and rest and not set("/?#@ ") & set(rest)
    if not plain or not _is_address(rest):
        raise click.UsageError(f"{given:.80}: expected an address, as http://127.0.0.1:8081")
    return f"{scheme}://{rest}"


def _is_address(rest: str) -> bool:
    try:
        found = urlsplit(f"//{rest}")
        return bool(found.hostname) and found.port != 0
    except ValueError:  # of a port beyond 65535, or of none
        return False
