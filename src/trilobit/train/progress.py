"""What a run tells while it runs: a progress bar, and one JSON line per logged step."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trilobit.train.recipe import Schedule
from trilobit.train.schedule import weight_decay


class Progress(TrainerCallback):
    """Writes log.jsonl, and a bar on a terminal or plain lines into a pipe.

    A line: step, tokens (seen so far), loss, learning_rate, weight_decay, grad_norm,
    tokens_per_s; or step, held_out_loss, held_out_perplexity.
    """

    def __init__(self, log: Path, schedule: Schedule, tokens_per_step: int) -> None:
        self._log, self._schedule, self._tokens_per_step = log, schedule, tokens_per_step
        self._bar: Any = None
        self._loss = math.nan
        self._mark = (0, 0.0)
        self._paused_s = 0.0
        self._evaluation_began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        _keep_until(self._log, state.global_step)
        self._mark = (state.global_step, time.monotonic())
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", smoothing=0.1
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
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
        logs = logs or {}
        entry: dict[str, float] = {"step": state.global_step}
        if "loss" in logs:
            entry |= self._training_entry(state, logs)
        elif "eval_loss" in logs:
            loss = logs["eval_loss"]
            entry |= {
                "held_out_loss": round(loss, 4),
                "held_out_perplexity": round(math.exp(min(loss, 50.0)), 3),
            }
            if self._evaluation_began:
                self._paused_s += time.monotonic() - self._evaluation_began
                self._evaluation_began = 0.0
        else:
            return
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
        self._show(state, entry)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the bar's line; safe to call twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _training_entry(self, state: TrainerState, logs: dict[str, float]) -> dict[str, float]:
        step, now = state.global_step, time.monotonic()
        marked_step, marked_time = self._mark
        seconds = now - marked_time - self._paused_s
        self._mark, self._paused_s = (step, now), 0.0
        self._loss = logs["loss"]
        return {
            "tokens": step * self._tokens_per_step,
            "loss": round(logs["loss"], 4),
            "learning_rate": float(f"{logs['learning_rate']:.4g}"),
            "weight_decay": weight_decay(self._schedule, step - 1),
            "grad_norm": round(float(logs.get("grad_norm", math.nan)), 3),
            "tokens_per_s": round(
                (step - marked_step) * self._tokens_per_step / max(seconds, 1e-9)
            ),
        }

    def _show(self, state: TrainerState, entry: dict[str, float]) -> None:
        if self._bar is not None:
            shown = {k: v for k, v in entry.items() if k in ("loss", "held_out_perplexity")}
            if "tokens_per_s" in entry:
                shown["tokens/s"] = entry["tokens_per_s"]
            self._bar.set_postfix(shown)
            return
        if "held_out_loss" in entry:
            what = f"held-out perplexity {entry['held_out_perplexity']:.2f}"
        else:
            rate = entry["tokens_per_s"]
            left_s = (state.max_steps - state.global_step) * self._tokens_per_step / max(rate, 1)
            what = f"loss {entry['loss']:.4f}, {rate:.0f} tokens/s, {left_s / 60:.0f} min left"
        print(f"step {state.global_step}/{state.max_steps}: {what}", file=sys.stderr, flush=True)


def _keep_until(log: Path, step: int) -> None:
    """Drop what a killed run logged after its last checkpoint: it is about to come again."""
    if not log.exists():
        return
    lines = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off by the kill
        if entry["step"] <= step:
            lines.append(line + "\n")
    log.write_text("".join(lines), encoding="utf-8")
