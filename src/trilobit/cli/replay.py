"""`trilobit replay`: ask again what a server was asked, and compare every byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilobit.cli.command import Command, option
from trilobit.cli.model_name import ModelName
from trilobit.cli.options import ENGINE, threads_option
from trilobit.cli.path import FilePath
from trilobit.errors import RequestError

if TYPE_CHECKING:
    from trilobit.llm import LLM
    from trilobit.serve.record import Recorded


@click.command(
    "replay",
    cls=Command,
    examples=[
        ("trilobit replay log.jsonl", "Ask again what `trilobit serve --request-log` kept."),
        ("trilobit replay log.jsonl --threads 1", "On another number of threads: the same."),
    ],
)
@click.argument("log", type=FilePath())
@option(ENGINE, "-m", "--model", type=ModelName(), help="In place of the models that it names.")
@threads_option
def command(log: Path, model: str | None, threads: int | None) -> None:
    """Compare what a request LOG holds with what its models answer now.

    Exit code 1 where an answer differs, which is told line by line.
    """
    from trilobit.serve.record import read

    llms: dict[tuple[str, str], LLM] = {}
    prompts = answers = wrong = 0
    for recorded in read(log):
        llm = _opened(recorded, model, threads, llms)
        again = llm.choices(recorded.prompt, len(recorded.outputs), recorded.params)
        prompts += 1
        answers += len(again)
        for choice in recorded.differing(again):
            wrong += 1
            print(f"line {recorded.line}: choice {choice} came out otherwise")
    if not prompts:
        raise RequestError(f"{log}: nothing was asked in it; give the log of a server that was")
    same = "all the same" if not wrong else f"{wrong:,} came out otherwise"
    print(f"{prompts:,} prompts, {answers:,} answers: {same}")
    if wrong:
        raise click.exceptions.Exit(1)


def _opened(
    recorded: Recorded, model: str | None, threads: int | None, llms: dict[tuple[str, str], LLM]
) -> LLM:
    from trilobit.llm import LLM

    name = model or recorded.model
    key = (name, str(recorded.options))
    if key not in llms:
        llms[key] = LLM(name, threads=threads, **recorded.options)
    llm = llms[key]
    if llm.fingerprint != recorded.fingerprint:
        raise RequestError(
            f"line {recorded.line}: was answered by {recorded.fingerprint}, and {name} is "
            f"{llm.fingerprint} here: take the same file and the same version of Trilobit"
        )
    return llm
