"""HumanEval: functions that a model completes, tried by their tests.

Chen et al., arXiv 2107.03374: 164 beginnings of Python functions. A completion is the likeliest
text, up to where the function ends; it counts if all tests pass (pass@1). Texts and ends are those
of lm-evaluation-harness' task; the programs run in a sandbox (`programs`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from lm_eval.api.instance import Instance

from trilobit.errors import FormatError, RequestError
from trilobit.evaluate.harness import Harness
from trilobit.evaluate.local import lines_of
from trilobit.evaluate.programs import check_sandbox, runs_through
from trilobit.evaluate.score import TaskScore
from trilobit.llm import LLM
from trilobit.progress import Watch, steps

HUMANEVAL = "humaneval"
_FILE = "human_eval.jsonl"
_FIELDS = ("prompt", "test", "entry_point")
_ENDS = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]
_MOST_OUTPUT = 1024  # tokens


def humaneval(
    llm: LLM, folder: Path, *, limit: int | None = None, progress: Watch | None = None
) -> TaskScore:
    """The share of functions whose tests pass.

    folder: has `human_eval.jsonl`, or that with `.xz`. limit: functions; None takes all.

    Raises RequestError for a folder without it and where there is no sandbox, FormatError for a
    damaged file.
    """
    tasks = _tasks(folder)[:limit]
    check_sandbox()
    written = Harness(llm, progress=progress).generate_until(_requests(tasks, _MOST_OUTPUT))
    tell = steps(progress, "Running what was written")
    passed = 0
    for done, ((prompt, test, name), text) in enumerate(zip(tasks, written, strict=True), 1):
        passed += runs_through(f"{prompt}{text}\n{test}\ncheck({name})")
        if tell is not None:
            tell(done, len(tasks))
    value = passed / len(tasks)
    return TaskScore(
        task=HUMANEVAL,
        metric="pass@1",
        value=value,
        standard_error=math.sqrt(value * (1 - value) / max(len(tasks) - 1, 1)),
        questions=len(tasks),
        shots=0,
    )


def output_requests(folder: Path, limit: int | None, *, most_tokens: int) -> list[Instance]:
    """What lm-eval's models are asked to write, in at most so many tokens; not to be run.

    Raises as `humaneval` does, but for the sandbox.
    """
    return _requests(_tasks(folder)[:limit], most_tokens)


def _requests(tasks: list[tuple[str, str, str]], most_tokens: int) -> list[Instance]:
    options = {"until": _ENDS, "max_gen_toks": most_tokens, "do_sample": False}
    return [
        Instance("generate_until", {}, (prompt, dict(options)), number)
        for number, (prompt, _, _) in enumerate(tasks)
    ]


def _tasks(folder: Path) -> list[tuple[str, str, str]]:
    """Prompt, tests, and the function's name, of each."""
    paths = [folder / name for name in (_FILE, f"{_FILE}.xz")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise RequestError(f"{folder}: no {_FILE} (or .xz) for {HUMANEVAL}; give its folder")
    found = []
    for number, line in enumerate(lines_of(path), 1):
        try:
            record = json.loads(line)
            prompt, test, name = (record[field] for field in _FIELDS)
            if not (isinstance(prompt, str) and isinstance(test, str) and name.isidentifier()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise FormatError(
                f"{path}: line {number} is no record of {HUMANEVAL}; mend it"
            ) from None
        found.append((prompt, test, name))
    if not found:
        raise FormatError(f"{path}: holds no record; fetch it again")
    return found
