"""`transformers.Trainer` with what a run of ours needs: its loop, our order and schedule.

The same steps give the same model on one process or several, in one go or resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from trilobit.errors import OutputError, RecipeError
from trilobit.nn import set_quantised_share
from trilobit.train.checkpoint import WRITE_ERRORS, first_line, remedy_of
from trilobit.train.export import save_masters
from trilobit.train.recipe import Recipe, Schedule
from trilobit.train.schedule import TwoStage, quantised_share

# The newest may be the one that a power cut damaged; keep one before it.
CHECKPOINTS_KEPT = 2
_RUNNING_LOSS = "running_loss.json"


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    """The recipe in the Trainer's words; also joins the processes that were launched together.

    Raises RecipeError when the batch cannot be shared among them, or the machine cannot
    compute in the recipe's precision.
    """
    schedule = recipe.schedule
    # Set by `accelerate launch`. One process alone uses all GPUs it sees.
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    if devices == 1:
        devices = max(torch.cuda.device_count(), 1)
    windows, rest = divmod(schedule.batch_windows, devices * schedule.accumulate_steps)
    if rest:
        raise RecipeError(
            f"schedule.batch_windows {schedule.batch_windows} cannot be shared among {devices} "
            f"processes or GPUs in {schedule.accumulate_steps} parts; make it a multiple"
        )
    try:
        return TrainingArguments(
            output_dir=str(output),
            max_steps=schedule.steps,
            per_device_train_batch_size=windows,
            per_device_eval_batch_size=windows,
            gradient_accumulation_steps=schedule.accumulate_steps,
            learning_rate=schedule.stage_1[0],
            weight_decay=schedule.weight_decay,
            adam_beta1=0.9,
            adam_beta2=0.95,
            max_grad_norm=schedule.max_grad_norm,
            optim="adamw_torch_fused",
            bf16=recipe.precision == "bf16",
            use_cpu=not torch.accelerator.is_available(),
            # The order is the data set's own: see TrainingWindows.
            train_sampling_strategy="sequential",
            logging_steps=recipe.log_every,
            logging_nan_inf_filter=False,
            eval_strategy="steps",
            eval_steps=recipe.evaluate_every,
            save_steps=recipe.save_every,
            save_total_limit=CHECKPOINTS_KEPT,
            prediction_loss_only=True,
            disable_tqdm=True,
            report_to=[],
            seed=recipe.seed,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
        )
    except ValueError as error:
        raise RecipeError(
            f"this machine cannot train with precision '{recipe.precision}' ({first_line(error)})"
        ) from error


class Pretrainer(Trainer):
    """The Trainer with our schedule, and checkpoints that appear at once."""

    def __init__(self, *, recipe: Recipe, output: Path, **rest: Any) -> None:
        self._recipe, self._run = recipe, output
        self._save_root = output
        self._loss_sum: torch.Tensor | float = 0.0
        self._logged_step = 0
        super().__init__(**rest)
        self.add_callback(_FollowRecipe(recipe.schedule))
        # Its stock printer would repeat every log line on stdout.
        self.remove_callback(PrinterCallback)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Ours, whatever the arguments name."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            scheduler: Any = TwoStage(optimizer, self._recipe.schedule)
            self.lr_scheduler = scheduler
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def resume_loss(self, checkpoint: Path) -> None:
        """Go on with the mean loss that a checkpoint between two log lines had begun."""
        path = checkpoint / _RUNNING_LOSS
        if path.exists():
            running = json.loads(path.read_text(encoding="utf-8"))
            self._loss_sum, self._logged_step = running["sum"], running["since_step"]

    def training_step(self, *args: Any, **rest: Any) -> torch.Tensor:
        """One forward and backward pass; returns its share of the step's loss."""
        loss = super().training_step(*args, **rest)
        self._loss_sum = self._loss_sum + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand on what is logged, with the mean loss since the last line.

        The Trainer's own mean begins anew when a run is resumed. Raises RecipeError when the
        loss is no number any more.
        """
        if "loss" in logs:
            step = self.state.global_step
            logs["loss"] = self._mean_over_processes() / (step - self._logged_step)
            self._loss_sum, self._logged_step = 0.0, step
            if not abs(logs["loss"]) < float("inf"):
                raise RecipeError(
                    f"the loss is {logs['loss']} at step {step}; lower the learning rates "
                    "schedule.stage_1 and stage_2, or raise warmup_steps, and begin --fresh"
                )
        super().log(logs, start_time)

    def final_held_out_loss(self) -> float:
        """Held-out loss of the model as it stands now."""
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.state.global_step:
                return float(entry["eval_loss"])
        return float(self.evaluate()["eval_loss"])

    def _mean_over_processes(self) -> float:
        mine = torch.as_tensor(self._loss_sum, device=self.args.device)
        return float(self.accelerator.gather(mine).mean())

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._save_root)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Written under another roof, then renamed: whoever is killed here leaves nothing
        # that looks like a checkpoint. Every process writes its part, the first one renames.
        name = f"checkpoint-{self.state.global_step}"
        running = {"sum": self._mean_over_processes(), "since_step": self._logged_step}
        self._save_root = self._run / "unfinished"
        self._first_process(lambda: shutil.rmtree(self._save_root, ignore_errors=True))
        try:
            super()._save_checkpoint(model, trial)
            self._first_process(lambda: self._publish(self._save_root / name, running))
        except WRITE_ERRORS as error:
            raise OutputError(
                f"{self._run / name}: cannot write the checkpoint ({first_line(error)}); "
                f"{remedy_of(error)}"
            ) from error
        finally:
            shutil.rmtree(self._save_root, ignore_errors=True)
            self._save_root = self._run

    def _publish(self, written: Path, running: dict[str, float]) -> None:
        (written / _RUNNING_LOSS).write_text(json.dumps(running), encoding="utf-8")
        final = self._run / written.name
        shutil.rmtree(final, ignore_errors=True)
        os.replace(written, final)
        rotate_checkpoints(output_dir=str(self._run), save_total_limit=CHECKPOINTS_KEPT)

    def _first_process(self, act: Any) -> None:
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            act()
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            save_masters(self.model, self.processing_class, Path(output_dir or self._run))


class _FollowRecipe(TrainerCallback):
    """What changes between the steps: λ, if the recipe warms the quantisation up."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A checkpoint brings its run's intervals along, but this run's recipe may have others.
        state.compute_steps(args, state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self._schedule.quantisation_warmup_steps:
            set_quantised_share(rest["model"], quantised_share(self._schedule, state.global_step))
