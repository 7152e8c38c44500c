"""How a run lies on the machine: processes, threads, memory, in the Trainer's words too."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from trilobit.errors import RecipeError
from trilobit.machine import available_cores, memory_bytes
from trilobit.model.config import ModelConfig
from trilobit.train.checkpoint import first_line
from trilobit.train.recipes import Recipe

# The newest may be the one that a power cut damaged; keep one before it.
CHECKPOINTS_KEPT = 2
# Multiply-adds of a layer's largest product that a thread is worth: a millisecond or two of one
# core, beside which waiting for each other, some ten microseconds, is little.
_PRODUCT_OF_A_THREAD = 1 << 24
# Weight, gradient and Adam's two moments, in float32.
_BYTES_A_PARAMETER = 16
_BYTES_A_FROZEN_PARAMETER = 4


def processes() -> int:
    """Processes that were launched together; torchrun and `accelerate launch` say how many."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_alone() -> bool:
    """Whether `accelerate launch --cpu` started this, which has one process whatever it is told."""
    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return cpu and "WORLD_SIZE" not in os.environ


def threads_worth(recipe: Recipe, config: ModelConfig) -> int:
    """Threads that a process's products are worth: a function of recipe and machine alone.

    Not measured at the start: a resumed run must add up as the one before it did.
    """
    together = processes()
    windows = recipe.schedule.batch_windows // (together * recipe.schedule.accumulate_steps)
    tokens = max(windows, 1) * recipe.data.window
    product = tokens * config.hidden_size * config.intermediate_size
    cores = max(available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", together)), 1)
    # torchrun sets it to 1 for several processes, whatever they are worth.
    limit = os.environ.get("OMP_NUM_THREADS", "")
    if together == 1 and limit.isdecimal():
        cores = min(cores, int(limit[:9]))
    return max(1, min(cores, product // _PRODUCT_OF_A_THREAD))


def check_memory(recipe: Recipe, config: ModelConfig, frozen_parameters: int = 0) -> None:
    """RecipeError when the model and its optimiser cannot fit: before it is built, not after.

    frozen_parameters: of models beside it that do not learn.
    """
    together = processes() * recipe.schedule.accumulate_steps
    tokens = max(recipe.schedule.batch_windows // together, 1) * recipe.data.window
    # The logits and their gradient; what the layers keep comes on top.
    a_parameter: float = _BYTES_A_FROZEN_PARAMETER if recipe.adapter else _BYTES_A_PARAMETER
    if recipe.sharded:
        a_parameter /= processes()
        if not torch.cuda.is_available():  # each process makes the whole model first
            a_parameter = max(a_parameter, _BYTES_A_FROZEN_PARAMETER)
    needed = config.parameters * a_parameter + tokens * config.vocab_size * 8
    needed += frozen_parameters * _BYTES_A_FROZEN_PARAMETER
    if torch.cuda.is_available():
        have: int | None = torch.cuda.get_device_properties(0).total_memory
    else:
        have = memory_bytes()
    if have is not None and needed > have:
        raise RecipeError(
            f"the run needs at least {needed / 1e9:.1f} GB of memory, and there are "
            f"{have / 1e9:.1f}; make the model smaller, or raise schedule.accumulate_steps"
        )


class _Sharded(TrainingArguments):
    """Of a model that goes to its devices in parts."""

    @property
    def place_model_on_device(self) -> bool:
        """Not as a whole."""
        return False


def training_arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    """The recipe in the Trainer's words; also joins the processes that were launched together.

    Raises RecipeError when the batch cannot be shared among them, or the machine cannot
    compute in the recipe's precision.
    """
    schedule = recipe.schedule
    # One process alone uses all GPUs it sees.
    devices = processes() if processes() > 1 else max(torch.cuda.device_count(), 1)
    if recipe.sharded and devices > processes():
        raise RecipeError(
            f"sharded wants a process for each GPU: trilobit train --processes {devices}"
        )
    windows, rest = divmod(schedule.batch_windows, devices * schedule.accumulate_steps)
    if rest:
        raise RecipeError(
            f"schedule.batch_windows {schedule.batch_windows} cannot be shared among {devices} "
            f"processes or GPUs in {schedule.accumulate_steps} parts; make it a multiple"
        )
    kind = _Sharded if recipe.sharded else TrainingArguments
    try:
        return kind(
            output_dir=str(output),
            max_steps=schedule.steps,
            per_device_train_batch_size=windows,
            per_device_eval_batch_size=windows,
            gradient_accumulation_steps=schedule.accumulate_steps,
            learning_rate=schedule.stage_1[0],
            max_grad_norm=schedule.max_grad_norm,
            bf16=recipe.precision == "bf16",
            use_cpu=not torch.accelerator.is_available(),
            # The order is the data set's own: see TrainingWindows.
            train_sampling_strategy="sequential",
            # They hold what is asked for, and of a mixture what its model does not see.
            remove_unused_columns=False,
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
