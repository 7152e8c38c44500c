"""The command line: a table of commands, each imported only when it is chosen.

Every error is one line on stderr and exit code 2; Ctrl-C exits with 130.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from types import FrameType

import click

from ..errors import TrilobitError
from .terminal import one_line

# name -> what `trilobit --help` says; the command is `command` in the module of that name
_COMMANDS = {
    "run": "Write a story with the bundled model, or with MODEL.",
    "generate": "Continue a prompt.",
    "chat": "Talk to a model in the terminal.",
    "embed": "Print vectors of texts, to search and compare them.",
    "info": "Explain a model file: shape, parameters, bits per weight, bytes by part.",
    "pull": "Download a model by name, and pack it.",
    "list": "Show the models that are here.",
    "rm": "Delete a model that was pulled or packed.",
    "convert": "Write a model in another form: packed file or Hugging Face directory.",
    "verify": "Check a model: every tensor, its text, its answers.",
    "synth": "Write a random checkpoint of a published shape.",
    "train": "Train a ternary model from text.",
    "bench": "Measure speed and memory beside the machine's own limits.",
}

# The only command that needs more than the package itself is train.
_EXTRA = "pip install 'trilobit[train]'"


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        command = importlib.import_module(f".{name}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, not from the modules: help must not import what it lists.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> None:
        # Here, because click would end a broken pipe in its own way.
        try:
            super().invoke(ctx)
            if sys.stdout is not None:  # it may be closed
                sys.stdout.flush()  # a full disk may show only now
        except BrokenPipeError:  # the reader went away (`| head`): stop quietly
            _discard_output()
            raise click.exceptions.Exit(141) from None


@click.command(cls=_Lazy, invoke_without_command=True)
@click.version_option(package_name="trilobit", prog_name="trilobit")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """1.58-bit (BitNet b1.58) language models: train, convert, run, measure."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command that stands in `sys.argv`, and exit."""
    # What stops us politely (`timeout`, a container, a terminal that is closed) must leave no
    # half-written file either. `nohup` has a closed terminal ignored: so it stays.
    signal.signal(signal.SIGTERM, _terminate)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?`
    try:
        code = _run()
    finally:
        # Nothing is left to stop: another Ctrl-C would only make a traceback of the exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _run() -> int:
    try:
        code = cli.main(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:  # click's name for Ctrl-C
        print("interrupted", file=sys.stderr)
        return 130
    except click.UsageError as error:
        help_command = f"{error.ctx.command_path} --help" if error.ctx else "trilobit --help"
        return _fail(f"{error.format_message().rstrip('.')}; see `{help_command}`")
    except click.ClickException as error:
        return _fail(error.format_message())
    except TrilobitError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trilobit"):
            raise
        return _fail(f"{error.name} is not installed, which this needs: {_EXTRA}")
    except MemoryError:
        return _fail("not enough memory; close other programs or take a smaller model")
    except OSError as error:
        if error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        _discard_output()
        return _fail(f"standard output: cannot be written ({error.strerror or error})")


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Keep the interpreter's own flush at exit from failing as ours did."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
