"""The command line: a table of commands, each imported only when it is chosen.

Every error is one line on stderr and exit code 2; Ctrl-C exits with 130.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from contextlib import suppress
from textwrap import shorten
from types import FrameType
from typing import TYPE_CHECKING

import click

from trilobit.cli.terminal import NO_MEMORY
from trilobit.console import has_terminal, one_line
from trilobit.errors import TrilobitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name -> what `trilobit --help` says; the command is `command` in the module of that name
_COMMANDS = {
    "run": "Talk to MODEL, ask it something, or let it tell a story.",
    "generate": "Continue a prompt, for people and for programs.",
    "chat": "Talk to a model in the terminal.",
    "serve": "Serve models by HTTP, in the APIs that clients speak.",
    "front": "Pass on what is asked to several servers, by one address.",
    "replay": "Ask again what a server was asked, and compare every byte.",
    "embed": "Print vectors of texts, to search and compare them.",
    "info": "Explain a model file: shape, parameters, bits per weight, bytes by part.",
    "pull": "Download a model by name, and pack it.",
    "list": "Show the models that are here.",
    "rm": "Delete a model that was pulled or packed.",
    "convert": "Write a model in another form: packed file or Hugging Face directory.",
    "verify": "Check a model: every tensor, its text, its answers.",
    "perplexity": "Measure how well a model foretells texts.",
    "eval": "Measure a model by the tasks of the papers' tables.",
    "synth": "Write a random checkpoint of a published shape.",
    "train": "Train a ternary model from text.",
    "bench": "Measure speed and memory beside the machine's own limits.",
    "report": "Measure models, and show them side by side as one page.",
}

# What a command needs beyond the package itself -> the extra that brings it; else it is train's.
_EXTRAS = {
    **dict.fromkeys(("datasets", "lm_eval"), "eval"),
    **dict.fromkeys(
        ("fastapi", "h11", "httpx", "prometheus_client", "pydantic", "starlette", "uvicorn"),
        "server",
    ),
}


# What other programs call it -> what to type.
_MEANT = {
    "help": "--help",
    "version": "--version",
    "ls": "list",
    "models": "list",
    "ps": "list",
    "show": "info",
    "download": "pull",
    "get": "pull",
    "install": "pull",
    "remove": "rm",
    "delete": "rm",
    "uninstall": "rm",
    "complete": "generate",
    "quantize": "convert",
    "benchmark": "bench",
    "embeddings": "embed",
    "check": "verify",
    "ppl": "perplexity",
    "evaluate": "eval",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        _log_to_stderr()
        command = importlib.import_module(f".{name}", __name__).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not ctx.resilient_parsing:
            raise click.UsageError(_unknown(args[0]), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # From the table, not from the modules, as help.
        from click.shell_completion import CompletionItem

        found = [(name, text) for name, text in _COMMANDS.items() if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=text) for name, text in found] + options

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


@click.command(
    cls=_Lazy,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`trilobit COMMAND -h` explains a command, with examples.",
)
@click.version_option(None, "-V", "--version", package_name="trilobit", prog_name="trilobit")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """1.58-bit (BitNet b1.58) language models: train, convert, run, measure."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(*, hears_ctrl_c: bool = False) -> None:
    """Run the command that stands in `sys.argv`, and exit.

    hears_ctrl_c: let Ctrl-C interrupt it; else what is set stays.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    try:
        # What stops us politely (`timeout`, a container, a terminal that is closed) must leave no
        # half-written file either. `nohup` has a closed terminal ignored: so it stays.
        signal.signal(signal.SIGTERM, _terminate)
        if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that lacks a character shows `?`
        if hears_ctrl_c:
            signal.signal(signal.SIGINT, interrupt)
        code = _run()
    except KeyboardInterrupt:
        code = _interrupted()
    except Exception:
        # A library that is interrupted while it loads may tell of it in its own way.
        if not interrupted:
            raise
        code = _interrupted()
    finally:
        # Nothing is left to stop: another Ctrl-C would only make a traceback of the exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _run() -> int:
    try:
        code = cli.main(prog_name="trilobit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:  # click's name for Ctrl-C
        return _interrupted()
    except click.UsageError as error:
        help_command = f"{error.ctx.command_path} --help" if error.ctx else "trilobit --help"
        message = error.format_message().rstrip(".")
        if isinstance(error, click.NoSuchOption) and _takes_text(error):
            message += "; a text that begins with a dash comes last, behind --"
        return _fail(f"{message}{' See' if message.endswith('?') else '; see'} `{help_command}`")
    except click.ClickException as error:
        return _fail(error.format_message())
    except TrilobitError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("trilobit"):
            raise
        extra = _EXTRAS.get(error.name.partition(".")[0], "train")
        return _fail(
            f"{error.name} is not installed, which this needs: pip install 'trilobit[{extra}]'"
        )
    except MemoryError:
        return _fail(NO_MEMORY)
    except OSError as error:
        if error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        _discard_output()
        return _fail(f"standard output: cannot be written ({error.strerror or error})")


def _takes_text(error: click.NoSuchOption) -> bool:
    """Whether what looks like an option may have been meant as text."""
    if error.possibilities or error.ctx is None:
        return False
    return any(param.nargs == -1 for param in error.ctx.command.params)


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    from trilobit.hub.names import is_known

    lower = name.lower()
    near = get_close_matches(lower, _COMMANDS, n=1)
    meant = _MEANT.get(lower) or (near[0] if near else None)
    if meant is None and is_known(name):
        meant = f"run {name}"
    asked = f"; did you mean `trilobit {meant}`?" if meant else ""
    return f"no command {shorten(repr(name), 60)}{asked}"


def _log_to_stderr() -> None:
    """Let what the package logs be heard: warnings always, the rest by whoever watches."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _say(one_line(record.getMessage()))

    log = logging.getLogger("trilobit")
    log.handlers = [Lines()]
    log.propagate = False
    log.setLevel(logging.INFO if has_terminal() else logging.WARNING)


def _interrupted() -> int:
    _say("interrupted")
    return 130


def _fail(message: str) -> int:
    from trilobit.cli.processes import may_tell

    if may_tell():
        _say(f"error: {one_line(message)}")
    return 2


def _say(line: str) -> None:
    with suppress(OSError):  # nobody hears it: the exit code still tells
        print(line, file=sys.stderr, flush=True)


def _discard_output() -> None:
    """Keep the interpreter's own flush at exit from failing as ours did."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
