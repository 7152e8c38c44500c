"""One number of a task, of lm-eval's or of our own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """One number of a task.

    standard_error: None where lm-eval gives none. shots: examples before each question. chance:
    what blind guessing gives, where answers are chosen among some; else None. cut: questions of
    which the context had no room for all; only their ends were read.
    """

    task: str
    metric: str
    value: float
    standard_error: float | None
    questions: int
    shots: int
    chance: float | None = None
    cut: int = 0
