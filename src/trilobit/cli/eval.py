"""`trilobit eval`: the tasks of the papers' tables, by lm-evaluation-harness."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilobit.bundled import DEFAULT
from trilobit.cli.command import Command
from trilobit.cli.options import OpenLLM, llm_options, model_argument
from trilobit.cli.path import FilePath
from trilobit.errors import RequestError
from trilobit.evaluate.suites import SUITES

if TYPE_CHECKING:
    from trilobit.evaluate.score import TaskScore

STSB, HUMANEVAL = "stsb", "humaneval"  # ours; all other tasks are lm-eval's


@click.command(
    "eval",
    cls=Command,
    examples=[
        ("trilobit eval bitnet-2b --suite bitnet-2b4t", "Beside the report's own numbers."),
        ("trilobit eval model.trilobit --tasks arc_easy,piqa --limit 200", "A part of two tasks."),
        ("trilobit eval --tasks hellaswag --data folder bitnet-2b", "Without the Hub."),
        ("trilobit eval bitnet-embedding-0.6b --tasks stsb --data folder", "Of its vectors."),
    ],
)
@model_argument(default=DEFAULT)
@click.option("--tasks", metavar="NAMES", help="lm-eval's tasks or groups, joined by commas.")
@click.option("--suite", type=click.Choice(list(SUITES)), help="The tasks of a paper's table.")
@click.option("--data", type=FilePath(file_okay=False), metavar="FOLDER", help="Has their files.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Questions of each task.")
@click.option(
    "--few-shot", type=click.IntRange(min=0), metavar="K", help="Examples before each question."
)
@click.option(
    "--run-programs", is_flag=True, help="Let humaneval run what the model writes, in a sandbox."
)
@click.option("--chat", is_flag=True, help="Ask through the model's chat template.")
@llm_options
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
def command(
    model: str,
    tasks: str | None,
    suite: str | None,
    data: Path | None,
    limit: int | None,
    few_shot: int | None,
    run_programs: bool,
    chat: bool,
    open_llm: OpenLLM,
    as_json: bool,
) -> None:
    """Measure MODEL by tasks of lm-evaluation-harness: share of right answers, with its error.

    The task stsb is of vectors: their rank correlation with how people find sentences alike.
    humaneval runs what the model writes, in a sandbox, and only with --run-programs.

    lm-eval fetches its data from the Hub; with --data they are read from FOLDER, as
    docs/evaluation.md tells. Needs the extra: pip install 'trilobit[eval]'.
    """
    from trilobit.cli.terminal import say
    from trilobit.console import Bars

    if (tasks is None) == (suite is None):
        raise RequestError("give --tasks or --suite, one of the two")
    names = list(SUITES[suite].tasks) if suite is not None else task_names(tasks or "")
    if HUMANEVAL in names and not run_programs:
        raise RequestError(
            "humaneval runs the programs that the model writes, in a sandbox; give --run-programs"
        )
    folder = data or Path()
    if {STSB, HUMANEVAL} & set(names) and data is None:
        raise RequestError("stsb and humaneval are read from a folder; give --data FOLDER")
    if STSB in names and few_shot is not None:
        raise RequestError("stsb has no examples before its questions; leave --few-shot out")
    # lm-eval's bars, beside ours; to be said before it is loaded.
    os.environ.setdefault("TQDM_DISABLE", "1")
    scores: list[TaskScore] = []
    asked = [name for name in names if name not in (STSB, HUMANEVAL)]
    if asked or HUMANEVAL in names:
        from trilobit.evaluate.humaneval import humaneval
        from trilobit.evaluate.tasks import evaluate

        with Bars() as bars, open_llm(model) as llm:
            if asked:
                scores = evaluate(
                    llm, asked, data=data, limit=limit, shots=few_shot, chat=chat, progress=bars
                )
            if HUMANEVAL in names:
                scores.append(humaneval(llm, folder, limit=limit, progress=bars))
    if STSB in names:
        from trilobit.embedder import Embedder
        from trilobit.evaluate.sentences import stsb

        scores += stsb(Embedder(model), folder, limit=limit)
    if as_json:
        rows = [dataclasses.asdict(score) for score in scores]
        print(json.dumps({"model": model, "suite": suite, "scores": rows}, allow_nan=False))
        return
    for score in scores:
        error = "" if score.standard_error is None else f" ± {score.standard_error:.4f}"
        say(
            f"{score.task:20} {score.metric:28} {score.value:.4f}{error}  "
            f"({score.questions} questions, {score.shots} examples{_by_chance(score)}{_cut(score)})"
        )
    if suite is not None:
        say(f"published: {SUITES[suite].source}")
        for name, values in SUITES[suite].published.items():
            pairs = zip(SUITES[suite].tasks, values, strict=True)
            say(f"{name}: " + ", ".join(f"{task} {value / 100:.4f}" for task, value in pairs))


def task_names(text: str) -> list[str]:
    """What --tasks names; RequestError if that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise RequestError("--tasks names no task; give one, such as arc_easy")
    return list(dict.fromkeys(names))


def _by_chance(score: TaskScore) -> str:
    """What blind guessing gives, where it is known."""
    return "" if score.chance is None else f", by chance {score.chance:.4f}"


def _cut(score: TaskScore) -> str:
    """How many questions were not read whole."""
    return f"; {score.cut} cut to fit the context" if score.cut else ""
