"""`trilobit verify`: is this model what it claims to be?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from trilobit.cli.command import Command
from trilobit.cli.options import model_argument
from trilobit.cli.path import FilePath

_MARKS = {True: "ok", False: "WRONG", None: "-"}


@click.command(
    "verify",
    cls=Command,
    examples=[
        ("trilobit verify bitnet-2b", "After a download, or a conversion."),
        ("trilobit verify model.trilobit --text wiki.test.raw", "With the text's perplexity."),
    ],
)
@model_argument()
@click.option(
    "--golden",
    type=FilePath(),
    metavar="FILE",
    help="Compare with the values in this JSON file (docs/verify.md).",
)
@click.option(
    "--text",
    type=FilePath(),
    metavar="FILE",
    help="Measure the perplexity of this text; of WikiText-2 (wiki.test.raw) some are known.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
@click.pass_context
def command(
    context: click.Context, model: str, golden: Path | None, text: Path | None, as_json: bool
) -> None:
    """Check MODEL: every tensor, its text, its answers.

    MODEL is a packed file, a checkpoint's directory, a GGUF file or a name. Where answers of the
    real model are known, such as those that transformers tests microsoft/bitnet-b1.58-2B-4T with,
    its own are compared with them. Exits with 1 when something is wrong.
    """
    from trilobit.cli.terminal import say
    from trilobit.cli.units import count
    from trilobit.console import Bars
    from trilobit.formats.files import read_text
    from trilobit.hub.models import source_path
    from trilobit.verify import golden as golden_values
    from trilobit.verify import verify

    values = golden_values.read(golden) if golden else None
    words = read_text(text) if text else None
    checks = []
    with Bars() as bars:
        path = source_path(model, bars)
        for check in verify(path, golden=values, text=words, progress=bars):
            checks.append(check)
            if not as_json:
                say(f"{check.name:<13}{_MARKS[check.passed]:<7}{check.found}")
    wrong = sum(check.passed is False for check in checks)
    if as_json:
        rows = [dataclasses.asdict(check) for check in checks]
        print(json.dumps({"path": str(path), "wrong": wrong, "checks": rows}))
    elif wrong:
        say(f"{path}: {wrong} of {count(len(checks), 'check')} failed")
    if wrong:
        context.exit(1)
