"""`trilobit serve`: models behind HTTP."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.bundled import CHAT, DEFAULT
from trilobit.cli.access import LIMITS, access_of, bound_options, listen, where_options, who_options
from trilobit.cli.command import Command, option
from trilobit.cli.model_name import ModelName
from trilobit.cli.number import Number
from trilobit.cli.options import (
    ENGINE,
    adapter_option,
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
@where_options
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
@who_options
@bound_options
@option(
    LIMITS,
    "--queue",
    type=click.IntRange(0, 100_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Requests that wait; more are told to come again.",
)
@option(
    LIMITS,
    "--timeout-s",
    type=Number(0, min_open=True),
    default=3600,
    show_default=True,
    metavar="S",
    help="Seconds that an answer may take.",
)
@option(
    LIMITS,
    "--idle-unload-s",
    type=Number(0, min_open=True),
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
    show_default="10",
    metavar="N",
    help="Of that folder; the longest unused goes.",
)
@threads_option
@context_option
@speculation_option
@kv_option
@layout_option
@adapter_option
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    **options: Any,
) -> None:
    """Serve MODELs (default: those of the package) to programs that speak OpenAI's API.

    Until Ctrl-C or SIGTERM. NAME=MODEL gives a model another name to be asked by. The first is
    opened now, the others when they are asked for.
    """
    from trilobit.serve.app import create_app

    # An adapter is of one model.
    bundled = (DEFAULT, CHAT) if options["adapter"] is None else (DEFAULT,)
    settings = _settings(models or bundled, host, **options)
    names = ", ".join(settings.models)
    listen(lambda: create_app(settings), names, host, port, tls_cert, tls_key)


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

    max_sequences: int = engine.pop("max_sequences")
    if engine["prefix_cache_gb"] is None:
        del engine["prefix_cache_gb"]
    elif engine["prefix_cache"] is None:
        raise click.UsageError("--prefix-cache-gb: of no folder; name one by --prefix-cache DIR")
    if engine["adapter"] is not None and len(models) > 1:
        raise click.UsageError("--adapter: of one model; serve it alone")
    return Settings(
        models=_named(models),
        engine=EngineOptions(
            max_sequences=max_sequences, max_batch_tokens=max(256, max_sequences), **engine
        ),
        **access_of(host, keys, api_key_file, hosts, origins, no_api_key=no_api_key),
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
