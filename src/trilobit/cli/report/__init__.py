"""`trilobit report`: what a model is, costs and can, measured here, as one page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trilobit.cli.command import Command, option
from trilobit.cli.eval import HUMANEVAL, STSB, task_names
from trilobit.cli.model_name import ModelName
from trilobit.cli.options import ENGINE, THREADS_HELP, model_option
from trilobit.cli.path import FilePath
from trilobit.errors import OutputError, RequestError


@click.command(
    "report",
    cls=Command,
    examples=[
        ("trilobit report bitnet-2b --text wiki.test.raw", "One model, in report.html."),
        ("trilobit report bitnet-2b falcon3-1b --out page.html", "Two, side by side."),
        ("trilobit report bitnet-2b --tasks arc_easy,piqa --limit 200", "With tasks of lm-eval."),
    ],
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=ModelName())
@model_option
@click.option(
    "--out",
    metavar="FILE",
    default="report.html",
    show_default=True,
    type=FilePath(),
    help="The page; its numbers stand beside it as .json. What is there is replaced.",
)
@click.option(
    "--text",
    "files",
    metavar="FILE",
    multiple=True,
    type=FilePath(),
    help="Measure perplexity and activations on it: text or .jsonl, plain or .xz. Repeatable.",
)
@click.option("--tasks", metavar="NAMES", help="Measure lm-eval's tasks, joined by commas.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Questions of each task; all of them."
)
@click.option(
    "--data",
    metavar="FOLDER",
    type=FilePath(file_okay=False),
    help="Has the files of the tasks; else the Hub.",
)
@click.option(
    "--generate",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    metavar="N",
    help="Tokens to write in each measurement of speed.",
)
@click.option(
    "--longest",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    metavar="N",
    help="Tokens of the longest prompt, as far as the context has room.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Times to measure each speed; shown are the median, the least and the most.",
)
@option(ENGINE, "--threads", type=click.IntRange(1, 1024), metavar="N", help=THREADS_HELP)
def command(
    models: tuple[str, ...],
    out: Path,
    files: tuple[Path, ...],
    tasks: str | None,
    limit: int | None,
    data: Path | None,
    generate: int,
    longest: int,
    runs: int,
    threads: int | None,
) -> None:
    """Measure one or several MODELs on this machine, and show them side by side as one HTML page.

    Nothing else should run on the machine meanwhile. A large model takes minutes.
    """
    from trilobit.cli.report.measure import Settings, measure
    from trilobit.cli.report.page import page
    from trilobit.console import Bars
    from trilobit.evaluate.texts import read_texts
    from trilobit.formats.whole_file import check_place, write_whole
    from trilobit.hub.models import open_packed

    numbers = out.with_suffix(".json")
    if numbers == out:
        raise OutputError(f"{out}: there the numbers will stand; name the page report.html")
    # All that can be wrong is looked at before minutes of work.
    for path in (out, numbers):
        check_place(path)
    texts = [text for file in files for text in read_texts(file)]
    names = _names(tasks, limit, data)
    with Bars() as bars:
        opened = [open_packed(model, lambda packed: packed.config, bars) for model in models]
        room = min(config.max_position_embeddings for _, config in opened) - generate
        if room < 1:
            raise RequestError(f"--generate {generate} leaves no room for a prompt; lower it")
        settings = Settings(
            prompt=min(512, longest, room),  # the same for all, to compare them
            generate=generate,
            longest=longest,
            runs=runs,
            threads=threads,
            texts=texts,
            tasks=names,
            limit=limit,
            data=data,
        )
        found = [
            measure(model, packed.path, settings, bars)
            for model, (packed, _) in zip(models, opened, strict=True)
        ]
    told = {"texts": [file.name for file in files], "tasks": names, "models": found}
    made = page(told, numbers.name).encode("utf-8", "replace")
    write_whole(numbers, json.dumps(told, indent=1).encode())
    write_whole(out, made)
    print(f"report: {out}, numbers: {numbers}", file=sys.stderr)


def _names(tasks: str | None, limit: int | None, data: Path | None) -> list[str]:
    """Of the tasks, which all can be asked; RequestError for others."""
    if tasks is None:
        if limit is not None or data is not None:
            raise RequestError("--limit and --data are of tasks; name some by --tasks")
        return []
    from trilobit.evaluate.tasks import wanted_tasks

    names = task_names(tasks)
    if own := sorted({STSB, HUMANEVAL} & set(names)):
        raise RequestError(
            f"{own[0]} is not in a report; trilobit eval --tasks {own[0]} measures it"
        )
    wanted_tasks(names, data)
    return names
