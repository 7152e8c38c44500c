"""Tasks of lm-evaluation-harness, by name: of the Hub's data, or of files in a folder."""

from __future__ import annotations

import functools
import json
import logging
import lzma
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, disable_progress_bars
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from trilobit.errors import FormatError, RequestError
from trilobit.evaluate.harness import Harness
from trilobit.formats.files import open_file
from trilobit.llm import LLM
from trilobit.progress import Watch

Record = dict[str, Any]

_MOST_RECORDS = 1 << 20
_MOST_LINE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One number of a task. standard_error: None where lm-eval gives none. shots: examples."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    questions: int
    shots: int


# ---- data in a folder -------------------------------------------------------------------------


def _lambada(record: Record) -> Record:
    if "text" in record:
        return record
    return {"text": f"{record['context']} {record['continuation']}"}


def _boolq(record: Record) -> Record:
    return {**record, "label": int(record["label"] if "label" in record else record["answer"])}


def _piqa(record: Record) -> Record:
    return {**record, "label": int(record["label"])}


def _same(record: Record) -> Record:
    return record


@dataclass(frozen=True, slots=True)
class _Local:
    """Where the data of a task lies in a folder: `<stem>.jsonl` or that with `.xz`."""

    stem: str
    split: str
    record: Callable[[Record], Record] = _same


# The publishers' own fields, in files named by data set, configuration and split.
_LOCAL = {
    "arc_challenge": _Local("ai2_arc_ARC-Challenge_validation", "validation"),
    "arc_easy": _Local("ai2_arc_ARC-Easy_validation", "validation"),
    "boolq": _Local("boolq_validation", "validation", _boolq),
    "gsm8k": _Local("gsm8k_test", "test"),
    "hellaswag": _Local("hellaswag_validation", "validation"),
    "lambada_openai": _Local("lambada_openai", "test", _lambada),
    "openbookqa": _Local("openbookqa_main_validation", "validation"),
    "piqa": _Local("piqa_plain_text_validation", "validation", _piqa),
    "sciq": _Local("sciq_validation", "validation"),
    "winogrande": _Local("winogrande_winogrande_xl_validation", "validation"),
}
LOCAL_TASKS = tuple(_LOCAL)


def _records(folder: Path, task: str) -> list[Record]:
    local = _LOCAL[task]
    paths = [folder / f"{local.stem}.jsonl{suffix}" for suffix in ("", ".xz")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise RequestError(f"{folder}: no {paths[0].name} (or .xz) for {task}; give its folder")
    found = []
    for number, line in enumerate(_lines(path), 1):
        try:
            found.append(local.record(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(f"{path}: line {number} is no record of {task}; mend it") from None
    if not found:
        raise FormatError(f"{path}: holds no record; fetch it again")
    return found


def _lines(path: Path) -> Iterator[bytes]:
    with open_file(path)[0] as file, ExitStack() as stack:
        lines = stack.enter_context(lzma.open(file)) if path.suffix == ".xz" else file
        try:
            for _ in range(_MOST_RECORDS):
                line = lines.readline(_MOST_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > _MOST_LINE_BYTES:
                    raise FormatError(f"{path}: a line of more than {_MOST_LINE_BYTES >> 20} MB")
                if line.strip():
                    yield line
        except (lzma.LZMAError, EOFError) as error:
            raise FormatError(f"{path}: is no whole .xz file ({error}); fetch it again") from None


def _from_folder(folder: Path, task: str, settings: Record) -> Any:
    """A task of lm-eval's settings, with its data from a folder."""
    split = _LOCAL[task].split
    data = DatasetDict({split: Dataset.from_list(_records(folder, task))})
    # Only this split is there: the questions, and examples among the others of them.
    splits: Record = {"training_split": None, "validation_split": None, "test_split": None}
    splits |= {f"{split}_split": split, "fewshot_split": split}
    return ConfigurableTask(config={**settings, **splits, "custom_dataset": lambda **_: data})


# ---- running ----------------------------------------------------------------------------------


@functools.cache
def _manager() -> TaskManager:
    """It reads thousands of files."""
    return TaskManager()


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

    Raises RequestError for an unknown task, FormatError for a damaged file.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bars()

    manager = _manager()
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise RequestError(f"{task}: lm-eval has no such task; `lm_eval ls tasks` lists them")
    if limit is not None and limit < 1:
        raise RequestError(f"limit is {limit}; expected at least 1")
    if shots is not None and shots < 0:
        raise RequestError(f"shots is {shots}; expected at least 0")
    wanted: list[Any] = list(tasks)
    if data is not None:
        for task in tasks:
            if task not in _LOCAL:
                raise RequestError(f"{task}: data in a folder is known of {', '.join(_LOCAL)}")
        files = {task: manager.task_index[task].yaml_path for task in tasks}
        settings = {task: load_yaml(files[task], resolve_func=True) for task in tasks}
        wanted = [_from_folder(data, task, settings[task]) for task in tasks]
    found = simple_evaluate(
        Harness(llm, progress=progress),
        tasks=wanted,
        num_fewshot=shots,
        limit=limit,
        task_manager=manager,
        apply_chat_template=chat,
        log_samples=False,
        bootstrap_iters=1000,
    )
    if found is None:  # of another process than the first
        return []
    return list(_scores(found))


def _scores(found: Record) -> Iterator[TaskScore]:
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
            )
