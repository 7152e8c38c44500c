"""`trilobit serve`: models behind HTTP."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.bundled import DEFAULT
from trilobit.cli.access import KEY_VARIABLE, is_loopback, keys_of, origin_of
from trilobit.cli.command import Command, option
from trilobit.cli.model_name import ModelName
from trilobit.cli.options import (
    ENGINE,
    context_option,
    kv_option,
    layout_option,
    model_option,
    speculation_option,
    threads_option,
)
from trilobit.cli.path import FilePath

if TYPE_CHECKING:
    from trilobit.serve.settings import Settings

_ACCESS = "Who may ask"
_LIMITS = "Limits"


def _bytes(value: str) -> int:
    found = re.fullmatch(r"(\d{1,9}) ?([KMGT])?i?B?", value.strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{value!r:.40} is no size, such as 4G or 512M")
    return (
        int(found[1])
        << {None: 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2] and found[2].upper()]
    )


@click.command(
    "serve",
    cls=Command,
    examples=[
        ("trilobit serve", "Serve the model of the package to this machine."),
        ("trilobit serve bitnet-2b small=trilobit-stories-5m", "Two models, one by another name."),
        ("trilobit serve --host 0.0.0.0 --api-key-file keys.txt", "Serve other machines, by key."),
    ],
)
@click.argument("models", nargs=-1, type=ModelName(), metavar="[[NAME=]MODEL]...")
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="0 takes a free one.",
)
@click.option("--tls-cert", type=FilePath(), help="Certificate (PEM), for https.")
@click.option("--tls-key", type=FilePath(), help="Its private key (PEM).")
@click.option("--no-page", is_flag=True, help="Leave out the chat page.")
@click.option(
    "--keep-billing-header",
    is_flag=True,
    help="Leave the line that agents put before their prompts; it keeps the cache from working.",
)
@click.option(
    "--request-log",
    type=FilePath(),
    help="Keep all texts that are asked and answered in this file, for `trilobit replay`.",
)
@click.option("--json-logs", is_flag=True, help="A line of JSON on stderr for every request.")
@option(
    _ACCESS,
    "--api-key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Repeatable. Others see it in "
    f"the list of processes: better use --api-key-file or {KEY_VARIABLE}.",
)
@option(_ACCESS, "--api-key-file", type=FilePath(), help="Keys, one a line.")
@option(_ACCESS, "--no-api-key", is_flag=True, help="Serve other machines without any key.")
@option(
    _ACCESS,
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name that this machine is asked by, such as that of a proxy. Repeatable.",
)
@option(
    _ACCESS,
    "--cors",
    "origins",
    multiple=True,
    metavar="ORIGIN",
    help="A page that may ask: https://app.example. Repeatable.",
)
@option(
    _LIMITS,
    "--queue",
    type=click.IntRange(0, 100_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Requests that wait; more are told to come again.",
)
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
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=3600,
    show_default=True,
    metavar="S",
    help="Seconds that an answer may take.",
)
@option(
    _LIMITS,
    "--drain-s",
    type=click.FloatRange(0, 86_400),
    default=30,
    show_default=True,
    metavar="S",
    help="Seconds that answers may still take when the server is told to stop.",
)
@option(
    _LIMITS,
    "--idle-unload-s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Close models that nobody has asked for so long. Default: never.",
)
@option(
    ENGINE,
    "--max-sequences",
    type=int,
    default=64,
    show_default=True,
    metavar="N",
    help="Answers written at once; others wait.",
)
@option(
    ENGINE,
    "--kv-memory-mb",
    type=int,
    default=512,
    show_default=True,
    metavar="N",
    help="Memory for what was read and written, and may be asked again.",
)
@option(
    ENGINE,
    "--memory",
    type=_bytes,
    metavar="SIZE",
    help="Of all models and caches together, at most: 4G, 512M. What cannot fit is refused.",
)
@option(
    ENGINE,
    "--prefix-cache",
    type=FilePath(),
    metavar="DIR",
    help="Keep what was computed of texts in this folder, for the next start and other servers.",
)
@option(
    ENGINE,
    "--prefix-cache-gb",
    type=int,
    default=10,
    show_default=True,
    metavar="N",
    help="Of that folder; the longest unused goes.",
)
@threads_option
@context_option
@speculation_option
@kv_option
@layout_option
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    **options: Any,
) -> None:
    """Serve MODELs (default: that of the package) to programs that speak OpenAI's API.

    Until Ctrl-C or SIGTERM. NAME=MODEL gives a model another name to be asked by. The first is
    opened now, the others when they are asked for.
    """
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key: give both, or none")
    from trilobit.serve.app import create_app
    from trilobit.serve.server import address_of, bind, check_tls, run

    settings = _settings(models or (DEFAULT,), host, **options)
    tls = (str(tls_cert), str(tls_key)) if tls_cert and tls_key else None
    if tls is not None:
        check_tls(*tls)
    with bind(host, port) as sock:
        address = address_of(sock, tls=tls is not None)
        names = ", ".join(settings.models)
        run(
            create_app(settings),
            sock,
            ready=lambda: print(f"Serving {names} at {address}", flush=True),
            tls=tls,
        )


def _settings(
    models: tuple[str, ...],
    host: str,
    *,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    no_api_key: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    queue: int,
    memory: int | None,
    body_mb: int,
    timeout_s: float,
    drain_s: float,
    idle_unload_s: float | None,
    request_log: Path | None,
    keep_billing_header: bool,
    no_page: bool,
    json_logs: bool,
    **engine: Any,
) -> Settings:
    from trilobit.engine.options import EngineOptions
    from trilobit.serve.settings import Settings

    every_key = keys_of(keys, api_key_file)
    here = is_loopback(host)
    if not here and not every_key and not no_api_key:
        raise click.UsageError(
            f"--host {host} lets other machines in: give --api-key-file, or --no-api-key"
        )
    if every_key and no_api_key:
        raise click.UsageError("--no-api-key: there are keys; leave out one or the other")
    max_sequences: int = engine.pop("max_sequences")
    return Settings(
        models=_named(models),
        engine=EngineOptions(
            max_sequences=max_sequences, max_batch_tokens=max(256, max_sequences), **engine
        ),
        keys=every_key,
        # Who has no key gets nothing, by whatever name.
        hosts=None if every_key and not here else frozenset(map(str.lower, (host, *hosts))),
        origins=tuple(map(origin_of, origins)),
        memory_bytes=memory,
        queue=queue,
        body_bytes=body_mb << 20,
        request_s=timeout_s,
        drain_s=drain_s,
        idle_unload_s=idle_unload_s,
        request_log=request_log,
        billing_header=keep_billing_header,
        page=not no_page,
        json_logs=json_logs,
    )


def _named(models: tuple[str, ...]) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in models:
        name, separator, model = given.partition("=")
        if not separator or os.path.exists(given):
            name, model = _short(given), given
        if not name or not model:
            raise click.UsageError(f"{given!r:.80}: expected NAME=MODEL, or a model")
        if name in named:
            raise click.UsageError(f"two models are named {name:.80}: give one as NAME=MODEL")
        named[name] = model
    return named


def _short(model: str) -> str:
    """What a model of a path is asked by."""
    return Path(model).stem if os.path.exists(model) else model
