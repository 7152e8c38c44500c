"""A command of `trilobit`: its help under headings, with examples, and how its MODEL is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Option(click.Option):
    """An option that `--help` shows under a heading of its own."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


def option(heading: str, *names: str, **settings: Any) -> Callable[[Decorated], Decorated]:
    """`click.option`, under a heading."""
    return click.option(*names, cls=Option, heading=heading, **settings)


class Command(click.Command):
    """A command with examples. examples: command lines, and what each of them does.

    Where MODEL is the first argument, `-m NAME` says the same: the others then move up one place.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the MODEL of `-m` where it stands without it."""
        try:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click does not say which command's help to read
            raise
        named = given.get("model_option")
        if named is None:
            return super().parse_args(ctx, args)
        # What begins with a dash is a file's name, and would be taken for options in that place.
        first = f"./{named}" if named.startswith("-") else named
        return super().parse_args(ctx, [first, *args])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, which most people look for, then options, this command's own ones first."""
        if self.examples:
            with formatter.section("Examples"):
                for line, what in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                    formatter.write(f"{'':{formatter.current_indent + 4}}{what}\n")
        records: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                heading = param.heading if isinstance(param, Option) else "Options"
                records.setdefault(heading, []).append(record)
        for heading, rows in records.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
