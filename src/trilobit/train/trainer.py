"""What a run of ours needs of transformers' trainers, and of those that trl builds on them.

Their loop, our order and schedule, whole checkpoints: the same steps give the same model on one
process or several, in one go or resumed. What is learned is the trainer's that it is mixed into.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import rotate_checkpoints

from trilobit.errors import OutputError
from trilobit.formats.whole_directory import put
from trilobit.formats.whole_file import check_space
from trilobit.nn import ModelActivations, set_activations, set_quantised_share
from trilobit.train.adapter import save_adapter
from trilobit.train.checkpoint import WRITE_ERRORS, Diverged, reason_of, remedy_of
from trilobit.train.export import save_masters
from trilobit.train.health import HEALTH, Health
from trilobit.train.launch import CHECKPOINTS_KEPT
from trilobit.train.optimizer import optimizer_of
from trilobit.train.recipes import Recipe
from trilobit.train.schedule import TwoStage, learning_rate, quantised_share
from trilobit.train.sharded import Sharded
from trilobit.train.sums import write_sums

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_RUNNING_LOSS = "running_loss.json"
_PART = ".checkpoint.part"  # a checkpoint that is not whole


class RunMixin(_Base):
    """Our schedule, and checkpoints that appear at once: `class Ours(RunMixin, SFTTrainer)`."""

    def __init__(self, *, recipe: Recipe, output: Path, **rest: Any) -> None:
        self._recipe, self._run = recipe, output
        self._save_root = self._begun = output
        self._loss_sum: torch.Tensor | float = 0.0
        self._logged_step = 0
        super().__init__(**rest)
        ours: Any = self.model
        self._health = Health(ours)
        self._sharded: Sharded | None = None
        if recipe.sharded:
            # While the rounding grows, layers need the floats that are rounded.
            as_codes = not recipe.schedule.quantisation_warmup_steps
            self._sharded = Sharded(ours, self.args.device, as_codes=as_codes)
            # So the Trainer calls a model that needs no wrapping to learn on several processes.
            self.is_distributed_loading_by_transformers = True
        self.add_callback(_FollowRecipe(recipe))
        # Its stock printer would repeat every log line on stdout.
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Ours, whatever the arguments name."""
        if self.optimizer is None:
            ours: Any = self.model if model is None else model
            self.optimizer = optimizer_of(self._recipe, ours)
        return self.optimizer

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
        running = json.loads((checkpoint / _RUNNING_LOSS).read_text(encoding="utf-8"))
        self._loss_sum, self._logged_step = running["sum"], running["since_step"]

    def training_step(self, *args: Any, **rest: Any) -> torch.Tensor:
        """One forward and backward pass; returns its share of the step's loss."""
        loss = super().training_step(*args, **rest)
        self._loss_sum = self._loss_sum + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand on what is logged, with the mean loss since the last line.

        The Trainer's own mean begins anew when a run is resumed. Raises Diverged when the
        loss is no number any more.
        """
        if "loss" in logs:
            step = self.state.global_step
            logs["loss"] = self._mean_over_processes() / (step - self._logged_step)
            self._loss_sum, self._logged_step = 0.0, step
            self._check_loss(logs["loss"])
            # Of the stages; the Trainer tells the first group's, which may be Muon's.
            logs["learning_rate"] = learning_rate(self._recipe.schedule, step - 1)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **rest: Any) -> dict[str, float]:
        """The Trainer's, but never compiled: that would take longer than the pass."""
        with torch.compiler.set_stance("force_eager"), self._health.watching():
            measured = super().evaluate(*args, **rest)
        if self.args.process_index == 0:
            self._tell_health()
        elif self._sharded:
            self._health.help()
        return measured

    def train(self, *args: Any, **rest: Any) -> Any:
        """The Trainer's; when it returns, the last checkpoint is whole."""
        try:
            return super().train(*args, **rest)
        finally:
            self._finish_saving()

    def whole_model(self) -> Any:
        """The model to be exported, in the first process. Of one in shards, all must ask."""
        return self._sharded.whole() if self._sharded else self.model

    def _tell_health(self) -> None:
        layers = self._health.by_layer()
        if layers:
            line = json.dumps({"step": self.state.global_step, "layers": layers})
            with (self._run / HEALTH).open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def final_evaluation(self) -> dict[str, float]:
        """What is measured of the model as it stands now: `eval_loss` and what the kind adds."""
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.state.global_step:
                return dict(entry)
        return self.evaluate()

    def _check_loss(self, loss: float) -> None:
        if not abs(loss) < float("inf"):
            raise Diverged(
                f"the loss is {loss} at step {self.state.global_step}; lower the learning rates "
                "schedule.stage_1 and stage_2, or raise warmup_steps, and begin --fresh"
            )

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
        # No later step mends such a model, and going on from it would be in vain.
        self._check_loss(running["sum"])
        self._finish_saving()  # of what lies where this one is to be written
        self._save_root = self._run / _PART  # of all processes
        self._first_process(lambda: shutil.rmtree(self._save_root, ignore_errors=True))
        written = self._save_root / name
        if self._sharded and self.args.process_index == 0:
            # Its parts are written beside the steps, which would go on in vain until the next one.
            check_space(self._run / name, self._sharded.size_bytes(self._learning()[0]))
        publish = partial(self._publish, written, running)
        try:
            with _told_of(self._run / name, WRITE_ERRORS):
                super()._save_checkpoint(model, trial)
                if self._sharded:
                    self._sharded.save(*self._learning(), written, publish)
                    self._begun = self._run / name
                else:
                    self._first_process(publish)
        finally:
            if not self._sharded:
                shutil.rmtree(self._save_root, ignore_errors=True)
            self._save_root = self._run

    def _finish_saving(self) -> None:
        if not self._sharded:
            return
        try:
            with _told_of(self._begun, (OSError,)):
                self._sharded.finish()
        except OutputError:
            shutil.rmtree(self._run / _PART, ignore_errors=True)
            raise

    def _publish(self, written: Path, running: dict[str, float]) -> None:
        (written / _RUNNING_LOSS).write_text(json.dumps(running), encoding="utf-8")
        write_sums(written)
        put(written, self._run / written.name)
        rotate_checkpoints(output_dir=str(self._run), save_total_limit=CHECKPOINTS_KEPT)
        shutil.rmtree(written.parent, ignore_errors=True)

    def _first_process(self, act: Any) -> None:
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            act()
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save and not self._sharded:
            save = save_masters if self._recipe.adapter is None else save_adapter
            save(self.model, self.processing_class, Path(output_dir or self._run))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self._sharded.load(*self._learning(), Path(checkpoint))

    def _defer_fsdp_gradient_reduction(self) -> Any:
        # Each part's gradients go into the shards: whole ones would take the memory that was saved.
        return nullcontext()

    def _learning(self) -> tuple[torch.optim.Optimizer, Any]:
        accelerated: Any = self.optimizer
        return accelerated.optimizer, self.lr_scheduler


@contextmanager
def _told_of(checkpoint: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise OutputError(
            f"{checkpoint}: cannot write the checkpoint ({reason_of(error)}); {remedy_of(error)}"
        ) from error


class _FollowRecipe(TrainerCallback):
    """What changes between the steps: the activations, and λ of the quantisation's warm-up."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._activations: ModelActivations = "int8"

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        # A checkpoint brings its run's intervals along, but this run's recipe may have others.
        state.compute_steps(args, state.max_steps)
        self._follow(rest["model"], state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._follow(rest["model"], state.global_step)

    def _follow(self, model: Any, step: int) -> None:
        schedule = self._recipe.schedule
        if schedule.quantisation_warmup_steps:
            set_quantised_share(model, quantised_share(schedule, step))
        activations = self._recipe.activations_at(step)
        if activations != self._activations:
            set_activations(model, activations)
            self._activations = activations
