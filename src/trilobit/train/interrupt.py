"""Ctrl-C during training: the step it falls into is finished and kept."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Interrupt(TrainerCallback):
    """While entered, the first Ctrl-C ends the training with a checkpoint of a whole step.

    In the middle of a step the weights belong to no step. A second Ctrl-C does not wait.
    alone: whether no other process trains along. Several would stop at different steps and
        wait for each other forever, so Ctrl-C keeps its usual meaning there.
    """

    def __init__(self, *, alone: bool) -> None:
        self.asked = False
        self._alone = alone
        self._previous: Any = None

    def __enter__(self) -> Self:
        # Only the main thread gets signals, and may say what they do.
        if self._alone and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask the trainer to save and stop."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not by print: the signal may have come in the middle of another one.
        os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")
