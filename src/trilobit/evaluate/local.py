"""Data of lm-evaluation-harness' tasks in a folder, for where the Hub cannot be reached.

Files are JSON lines with the publishers' own fields, named by data set, configuration and split.
Two sets are passed on with what lm-eval makes of them already made: their settings say so.
"""

from __future__ import annotations

import functools
import json
import lzma
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError, RequestError
from trilobit.formats.files import open_file

Record = dict[str, Any]

_MOST_RECORDS = 1 << 20
_MOST_LINE_BYTES = 8 << 20


def _lambada(record: Record) -> Record:
    if "text" in record:
        return record
    return {"text": f"{record['context']} {record['continuation']}"}


def _boolq(record: Record) -> Record:
    return {**record, "label": int(record["label"] if "label" in record else record["answer"])}


def _piqa(record: Record) -> Record:
    return {**record, "label": int(record["label"])}


def _commonsense(record: Record) -> Record:
    return {key: record[key] for key in ("query", "choices", "gold")}


def _winograd(record: Record) -> Record:
    return {key: record[key] for key in ("context_options", "continuation", "gold")}


def _trivia(record: Record) -> Record:
    return {"question": record["question"], "answer": {"aliases": record["answer"]["aliases"]}}


def _same(record: Record) -> Record:
    return record


@dataclass(frozen=True, slots=True)
class _Local:
    """Where the data of a task lies in a folder: `<stem>.jsonl` or that with `.xz`.

    settings: what takes the place of lm-eval's own, where the file has another form.
    """

    stem: str
    split: str
    record: Callable[[Record], Record] = _same
    settings: Record = field(default_factory=dict)


_LOCAL = {
    "arc_challenge": _Local("ai2_arc_ARC-Challenge_validation", "validation"),
    "arc_easy": _Local("ai2_arc_ARC-Easy_validation", "validation"),
    "boolq": _Local("boolq_validation", "validation", _boolq),
    # Four of the five choices, within the question as it is put.
    "commonsense_qa": _Local(
        "commonsense_qa",
        "validation",
        _commonsense,
        {"doc_to_text": "{{query}}", "doc_to_target": "gold", "doc_to_choice": "choices"},
    ),
    "gsm8k": _Local("gsm8k_test", "test"),
    "hellaswag": _Local("hellaswag_validation", "validation"),
    "lambada_openai": _Local("lambada_openai", "test", _lambada),
    "openbookqa": _Local("openbookqa_main_validation", "validation"),
    "piqa": _Local("piqa_plain_text_validation", "validation", _piqa),
    "sciq": _Local("sciq_validation", "validation"),
    "triviaqa": _Local("trivia_qa_rc.wikipedia.nocontext_validation", "validation", _trivia),
    "winogrande": _Local("winogrande_winogrande_xl_validation", "validation"),
    # The beginnings with either name in the place of the pronoun.
    "wsc273": _Local(
        "winograd_wsc",
        "test",
        _winograd,
        {
            "process_docs": None,
            "should_decontaminate": False,
            "doc_to_text": "gold",
            "doc_to_target": "continuation",
            "doc_to_choice": "context_options",
        },
    ),
}
_MMLU = "mmlu_"  # and a subject: one file holds them all
_MMLU_FILE = _Local("mmlu_test", "test")
LOCAL_TASKS = (*_LOCAL, "mmlu")


def task_data(folder: Path, task: str) -> tuple[str, list[Record], Record]:
    """A task's split, its records, and settings that the form of its file asks for.

    Raises RequestError for a task that no file is known of, or whose file is not there; FormatError
    for a damaged one.
    """
    if task.startswith(_MMLU):
        subject = task.removeprefix(_MMLU)
        found = _subjects(folder, _changed(folder, _MMLU_FILE)).get(subject)
        if found is None:
            raise RequestError(f"{folder}: {_MMLU_FILE.stem}.jsonl has no subject {subject}")
        return _MMLU_FILE.split, found, {"fewshot_config": None}
    if task not in _LOCAL:
        raise RequestError(
            f"{task}: data in a folder is known of {', '.join(LOCAL_TASKS)}, stsb and humaneval; "
            "take one of them, or leave --data out"
        )
    local = _LOCAL[task]
    return local.split, _records(_path(folder, local, task), local, task), local.settings


def subjects(folder: Path) -> list[str]:
    """The tasks that `mmlu` is made of, by the file in a folder."""
    return [_MMLU + name for name in sorted(_subjects(folder, _changed(folder, _MMLU_FILE)))]


def _changed(folder: Path, local: _Local) -> int:
    return _path(folder, local, "mmlu").stat().st_mtime_ns


@functools.lru_cache(maxsize=1)
def _subjects(folder: Path, changed: int) -> dict[str, list[Record]]:
    """Records by subject, read once for all of them."""
    path = _path(folder, _MMLU_FILE, "mmlu")
    found: dict[str, list[Record]] = {}
    for record in _records(path, _MMLU_FILE, "mmlu"):
        if not isinstance(record.get("subject"), str):
            raise FormatError(f"{path}: a record has no subject; fetch it again")
        kept = {key: record.get(key) for key in ("question", "choices", "answer")}
        found.setdefault(record["subject"], []).append(kept)
    return found


def _path(folder: Path, local: _Local, task: str) -> Path:
    paths = [folder / f"{local.stem}.jsonl{suffix}" for suffix in ("", ".xz")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise RequestError(f"{folder}: no {paths[0].name} (or .xz) for {task}; give its folder")
    return path


def _records(path: Path, local: _Local, task: str) -> list[Record]:
    found = []
    for number, line in enumerate(lines_of(path), 1):
        try:
            record = json.loads(line)
            found.append(local.record(record))
            found[-1].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(f"{path}: line {number} is no record of {task}; mend it") from None
    if not found:
        raise FormatError(f"{path}: holds no record; fetch it again")
    return found


def lines_of(path: Path) -> Iterator[bytes]:
    """Lines that are not empty, of a file or an `.xz`, within bounds; FormatError beyond."""
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
