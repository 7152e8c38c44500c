"""Tasks of lm-evaluation-harness, by name: of the Hub's data, or of files in a folder."""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.evaluator
from datasets import Dataset, DatasetDict, disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from trilobit.errors import RequestError, TrilobitError
from trilobit.evaluate.harness import Harness
from trilobit.evaluate.local import Record, subjects, task_data
from trilobit.evaluate.score import TaskScore
from trilobit.llm import LLM
from trilobit.progress import Watch

# It asks git, of the folder where the user happens to be, and git complains.
lm_eval.evaluator.get_git_commit_hash = lambda: None

_CHOSEN = ("acc", "acc_norm")  # metrics of answers that are chosen among some


def folder_task(folder: Path, task: str) -> Any:
    """A task of lm-eval's settings, with its data from a folder; not for groups, such as mmlu.

    Raises RequestError for a task that no file is known of, or whose file is not there; FormatError
    for a damaged one.
    """
    split, records, changed = task_data(folder, task)
    settings = load_yaml(_manager().task_index[task].yaml_path, resolve_func=True)
    data = DatasetDict({split: Dataset.from_list(records)})
    # Only this split is there: the questions, and examples among the others of them.
    splits: Record = {"training_split": None, "validation_split": None, "test_split": None}
    splits |= {f"{split}_split": split, "fewshot_split": split}
    settings = {**settings, **splits, **changed, "custom_dataset": lambda **_: data}
    return ConfigurableTask(
        config={key: value for key, value in settings.items() if value is not None or key in splits}
    )


# ---- running ----------------------------------------------------------------------------------


@functools.cache
def _manager() -> TaskManager:
    """It reads thousands of files."""
    return TaskManager()


def wanted_tasks(tasks: list[str], data: Path | None) -> list[Any]:
    """Tasks as lm-eval takes them: their names, or with their records of a folder.

    Raises as `evaluate` does.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bars()
    known = set(_manager().all_tasks)
    for task in tasks:
        if task not in known:
            raise RequestError(f"{task}: lm-eval has no such task; `lm_eval ls tasks` lists them")
    if data is None:
        return list(tasks)
    named = [one for task in tasks for one in (subjects(data) if task == "mmlu" else [task])]
    unknown = next((task for task in named if task not in known), None)
    if unknown is not None:
        raise RequestError(f"{data}: lm-eval has no task {unknown}, which a record is of")
    made = []
    for task in named:
        with _in_a_line(task, data):
            made.append(folder_task(data, task))
    return made


@contextmanager
def _in_a_line(task: str, data: Path | None) -> Iterator[None]:
    """As RequestError what lm-eval raises of itself, over records that it can make nothing of."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, TrilobitError):
            raise
        reason = " ".join(str(error).split())[:120]
        where = f"{data}: " if data is not None else ""
        raise RequestError(
            f"{where}lm-eval can ask no questions of {task} ({type(error).__name__}: {reason}); "
            "are its records whole, and more of them than examples before each question?"
        ) from error


def evaluate(
    llm: LLM,
    tasks: list[str],
    *,
    data: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    progress: Watch | None = None,
) -> list[TaskScore]:
    """Every number that lm-eval gives of `tasks`.

    data: a folder with the tasks' files; None lets lm-eval fetch them. limit: questions of each
    task; None takes all. shots: examples before each question; None takes the task's own number.
    chat: put every question through the model's chat template.

    Raises RequestError for an unknown task, for records that lm-eval can make no questions of, and
    for a chat template that the model has not; FormatError for a damaged file.
    """
    if chat and not llm.has_chat_template:
        raise RequestError("the model has no chat template; ask its questions as they are")
    if limit is not None and limit < 1:
        raise RequestError(f"limit is {limit}; expected at least 1")
    if shots is not None and shots < 0:
        raise RequestError(f"shots is {shots}; expected at least 0")
    wanted = wanted_tasks(tasks, data)
    harness = Harness(llm, progress=progress)
    # It tells of its bootstrap on stdout.
    with redirect_stdout(sys.stderr), _in_a_line(", ".join(tasks), data):
        found = simple_evaluate(
            harness,
            tasks=wanted,
            num_fewshot=shots,
            limit=limit,
            task_manager=_manager(),
            apply_chat_template=chat,
            log_samples=True,  # they tell how many answers each question has
            bootstrap_iters=1000,
        )
    if found is None:  # of another process than the first
        return []
    scores = list(_scores(found, harness.cut))
    if data is not None and "mmlu" in tasks:
        scores.append(_mmlu([score for score in scores if score.task.startswith("mmlu_")]))
    return scores


def _mmlu(subjects: list[TaskScore]) -> TaskScore:
    """All subjects as one, each question with the same weight, as lm-eval's group has it."""
    questions = sum(score.questions for score in subjects)
    value = sum(score.value * score.questions for score in subjects) / questions
    return replace(
        subjects[0],
        task="mmlu",
        value=value,
        standard_error=math.sqrt(value * (1 - value) / max(questions - 1, 1)),
        questions=questions,
        cut=sum(score.cut for score in subjects),
    )


def _scores(found: Record, cut: set[tuple[Any, ...]]) -> Iterator[TaskScore]:
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or not kind or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            yield TaskScore(
                task=task,
                metric=metric if kind == "none" else f"{metric} ({kind})",
                value=float(value),
                standard_error=float(error) if isinstance(error, int | float) else None,
                questions=int(found["n-samples"].get(task, {}).get("effective", 0)),
                shots=int(found["n-shot"].get(task, 0)),
                chance=_chance(found, task) if metric in _CHOSEN else None,
                cut=_cut(found, task, cut),
            )


def _cut(found: Record, task: str, cut: set[tuple[Any, ...]]) -> int:
    """How many questions had a request that was cut; one is known by its texts."""
    asked = (
        (question["doc_id"], tuple(part for part in arguments if isinstance(part, str)))
        for question in found["samples"].get(task, ())
        for arguments in question["arguments"]
    )
    return len({number for number, texts in asked if texts in cut})


def _chance(found: Record, task: str) -> float | None:
    """The mean of one over the number of answers, of the questions that were asked."""
    settings = found["configs"].get(task, {})
    # A task that counts by itself may take several answers for right ones.
    if settings.get("output_type") != "multiple_choice" or settings.get("process_results"):
        return None
    answers = [len(question["filtered_resps"]) for question in found["samples"][task]]
    return sum(1 / several for several in answers) / len(answers)
