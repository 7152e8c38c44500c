"""`trilobit serve`: models behind HTTP."""

from __future__ import annotations

import click

from trilobit.bundled import DEFAULT
from trilobit.cli.command import Command
from trilobit.cli.model_name import ModelName


@click.command(
    "serve",
    cls=Command,
    examples=[
        ("trilobit serve", "Serve the model of the package to this machine."),
        ("trilobit serve bitnet-2b --port 9000", "Serve another one elsewhere."),
    ],
)
@click.argument("models", nargs=-1, type=ModelName(), metavar="[MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--no-page", is_flag=True, help="No chat page at /.")
def command(models: tuple[str, ...], host: str, port: int, no_page: bool) -> None:
    """Serve MODELs (default: that of the package) by OpenAI's API, until Ctrl-C or SIGTERM."""
    from trilobit.serve.app import create_app
    from trilobit.serve.server import address_of, bind, run
    from trilobit.serve.settings import Settings

    names = models or (DEFAULT,)
    with bind(host, port) as sock:
        settings = Settings(
            models={name: name for name in names}, hosts=frozenset({host}), page=not no_page
        )
        app = create_app(settings)
        run(
            app,
            sock,
            ready=lambda: print(f"Serving {', '.join(names)} at {address_of(sock)}", flush=True),
            drain_s=30,
        )
