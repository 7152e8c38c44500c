"""What a run tells while it runs: a progress bar, and one JSON line per logged step."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trilobit.formats.files import open_file
from trilobit.formats.whole_file import write_whole
from trilobit.train.health import HEALTH
from trilobit.train.recipes import Schedule
from trilobit.train.schedule import weight_decay

_MAX_LINE_BYTES = 1 << 20  # of a log: of a thousand layers


class Progress(TrainerCallback):
    """Writes log.jsonl, and a bar on a terminal or plain lines into a pipe.

    A line of the log: step, tokens (seen so far), loss (mean since the line before),
    learning_rate, weight_decay, grad_norm, tokens_per_s; or step, held_out_loss,
    held_out_perplexity, and of text held_out_bits_per_byte; of preferences held_out_accuracy
    instead. Of a mixture each of its texts has `passes/NAME` and held_out_bits_per_byte/NAME.
    window_tokens: of a window, on the average; to be set before the run begins.
    """

    def __init__(self, log: Path, schedule: Schedule) -> None:
        self._log, self._schedule = log, schedule
        self.window_tokens = 0.0
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._told = {"training": "", "held_out": ""}
        self._mark = (0, 0.0)
        self._paused_s = 0.0
        self._evaluation_began = 0.0
        self._evaluation_s: float | None = None
        self._held_out_tokens = 0

    def tell(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the clock and the bar."""
        held_out = rest.get("eval_dataloader")
        self._held_out_tokens = int(len(held_out.dataset) * self.window_tokens) if held_out else 0
        for log in (self._log, self._log.with_name(HEALTH)):
            _keep_until(log, state.global_step)
        self._mark = (state.global_step, time.monotonic())
        if self._console.is_terminal:
            self._bar = Bar(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
        # The clock of tokens_per_s stands still during evaluation: see on_log.
        if control.should_evaluate:
            self._evaluation_began = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write a line of the log, and show it."""
        logs = logs or {}
        entry: dict[str, float] = {"step": state.global_step}
        if "loss" in logs:
            entry |= self._training_entry(state, logs)
            self._told["training"] = self._training_line(args, state, entry)
        elif "eval_loss" in logs:
            measured, self._told["held_out"] = _held_out(logs)
            entry |= measured
            if self._evaluation_began:
                self._evaluation_s = time.monotonic() - self._evaluation_began
                self._paused_s += self._evaluation_s
                self._evaluation_began = 0.0
        else:
            return
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        if self._bar is not None:
            told = ", ".join(filter(None, self._told.values()))
            self._bar.update(self._task, description=told)
        else:
            what = self._told["training" if "loss" in entry else "held_out"]
            self._console.print(f"step {state.global_step}/{state.max_steps}: {what}")

    @property
    def _tokens_per_step(self) -> float:
        return self._schedule.batch_windows * self.window_tokens

    def _training_entry(self, state: TrainerState, logs: dict[str, float]) -> dict[str, float]:
        step, now = state.global_step, time.monotonic()
        marked_step, marked_time = self._mark
        seconds = now - marked_time - self._paused_s
        self._mark, self._paused_s = (step, now), 0.0
        entry = {
            "tokens": round(step * self._tokens_per_step),
            "loss": round(logs["loss"], 4),
            "learning_rate": float(f"{logs['learning_rate']:.4g}"),
            "weight_decay": weight_decay(self._schedule, step - 1),
        }
        if "grad_norm" in logs:
            entry["grad_norm"] = round(float(logs["grad_norm"]), 3)
        entry |= {key: round(times, 4) for key, times in logs.items() if key.startswith("passes/")}
        tokens = (step - marked_step) * self._tokens_per_step
        entry["tokens_per_s"] = round(tokens / max(seconds, 1e-9))
        return entry

    def _training_line(
        self, args: TrainingArguments, state: TrainerState, entry: dict[str, float]
    ) -> str:
        rate = max(entry["tokens_per_s"], 1)
        tokens_left = (state.max_steps - state.global_step) * self._tokens_per_step
        left_s = tokens_left / rate
        if self._held_out_tokens:
            # Until one was measured: a pass without gradients is a third of one with them.
            evaluation_s = self._evaluation_s or self._held_out_tokens / rate / 3
            left_s += evaluation_s * _evaluations_left(state, int(args.eval_steps or 0))
        return f"loss {entry['loss']:.4f}, {rate:.0f} tokens/s, {_duration(left_s)} left"


def _held_out(logs: dict[str, float]) -> tuple[dict[str, float], str]:
    """What was measured of the held-out text, and the same in words."""
    loss = logs["eval_loss"]
    entry = {"held_out_loss": round(loss, 4)}
    if "eval_accuracy" in logs:
        entry["held_out_accuracy"] = round(logs["eval_accuracy"], 4)
        return entry, f"held-out loss {loss:.4f}, {entry['held_out_accuracy']:.1%} told apart"
    # More than this is noise, and more still no float.
    entry["held_out_perplexity"] = perplexity = round(math.exp(min(loss, 50.0)), 3)
    told = f"perplexity {perplexity:.2f}"
    if "eval_bits_per_byte" in logs:
        entry["held_out_bits_per_byte"] = round(logs["eval_bits_per_byte"], 4)
        by_text = {
            key.removeprefix("eval_"): round(bits, 4)
            for key, bits in logs.items()
            if key.startswith("eval_bits_per_byte/")
        }
        entry |= {f"held_out_{key}": bits for key, bits in by_text.items()}
        texts = ", ".join(f"{key.partition('/')[2]} {bits:.3f}" for key, bits in by_text.items())
        of_all = f"{entry['held_out_bits_per_byte']:.3f} bits a byte"
        told = f"{of_all}{f' ({texts})' if texts else ''}, {told}"
    return entry, f"held-out {told}"


def _evaluations_left(state: TrainerState, every: int) -> int:
    """Those at multiples of `every` steps, and one behind the last step."""
    if not every:
        return 0
    at_multiples = state.max_steps // every - state.global_step // every
    return at_multiples + (state.max_steps % every > 0)


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h} h {m:02} min" if h else f"{m} min {s:02} s" if m else f"{s} s"


def _keep_until(log: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it is about to come again."""
    if not log.exists():
        return
    lines = []
    with open_file(log)[0] as file:
        while line := file.readline(_MAX_LINE_BYTES):
            try:
                entry = json.loads(line)
                keep = entry["step"] <= step and line.endswith(b"\n")
            except (ValueError, LookupError, TypeError, RecursionError):
                continue  # cut off by the kill, or damaged
            if keep:
                lines.append(line)
    write_whole(log, b"".join(lines), "choose another --output")
