"""The command line: a table of commands, each imported only when it is chosen.

Every error of ours is one line on stderr and exit code 2; Ctrl-C exits with 130.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from .. import __version__
from ..errors import TrilobitError

# name -> what `trilobit --help` says; the command is `command` in the module of that name
_COMMANDS = {
    "run": "Write a story with the bundled model, or with MODEL.",
    "generate": "Continue a prompt.",
    "chat": "Talk to a model in the terminal.",
    "info": "Explain a model file: shape, parameters, bits per weight, bytes by part.",
    "convert": "Turn a Hugging Face checkpoint into one packed file.",
    "synth": "Write a random checkpoint of a published shape.",
    "train": "Train a ternary model from text.",
    "bench": "Measure speed and memory beside the machine's own limits.",
}


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


@click.command(cls=_Lazy)
@click.version_option(__version__, prog_name="trilobit")
def cli() -> None:
    """1.58-bit (BitNet b1.58) language models: train, convert, run, measure."""


def main() -> None:
    """Entry point of the `trilobit` command."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:  # click's name for Ctrl-C
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TrilobitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader went away (`| head`): stop quietly, and keep the interpreter's own flush
        # at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)
