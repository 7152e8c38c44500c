"""Run a recipe: text in, a ternary model as a Hugging Face directory out.

A run's folder:

    recipe.json       what this run is; another recipe may not resume here
    hub.json          of text of the Hub, the commits that it was taken from
    corpus/           the tokenizer and the tokens
    checkpoint-N/     loadable models, with what it takes to go on
    tensorboard/      the curves
    log.jsonl         the same as lines
    failed.txt        of a run that came to nothing, why
    health.jsonl      of every evaluation, what the codes and inputs of each layer are
    model/, packed/   the result: float32 masters, and packed codes
    adapter/          the result instead, where a frozen model was adapted
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from trilobit.errors import OutputError, RecipeError
from trilobit.formats.hf.writer import write_hf
from trilobit.formats.pooling import Pooling
from trilobit.train.adapter import save_adapter
from trilobit.train.checkpoint import (
    Diverged,
    check,
    claim,
    fill,
    keep_failure,
    last_checkpoint,
    remedy_of,
    step_of,
)
from trilobit.train.data.fetched import keep_commits, kept_commits, with_files_here
from trilobit.train.export import Trained, save_masters
from trilobit.train.interrupt import Interrupt
from trilobit.train.launch import (
    check_memory,
    launched_alone,
    processes,
    threads_worth,
    training_arguments,
)
from trilobit.train.lock import locked
from trilobit.train.monitor import Progress
from trilobit.train.objectives.causal import Causal
from trilobit.train.objectives.contrastive import Contrastive
from trilobit.train.objectives.distilled import Distilled
from trilobit.train.objectives.preferences import Preferred
from trilobit.train.objectives.replies import Supervised
from trilobit.train.recipes import Distill, Dpo, Embed, Pretrain, Recipe, Schedule, Sft
from trilobit.train.sharded import joined

# In the words of gloo and NCCL.
_OF_OTHERS = re.compile("connection|peer|gloo|nccl", re.IGNORECASE)
# What learns what a kind of recipe asks for.
OBJECTIVES: dict[str, Any] = {
    Pretrain.kind: Causal,
    Sft.kind: Supervised,
    Dpo.kind: Preferred,
    Embed.kind: Contrastive,
    Distill.kind: Distilled,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a finished run's model lies, and how well it predicts the held-out text.

    packed: None for a float model, for an adapter, and for a model that our engine does not run.
    held_out_bits_per_byte: what the loss is by byte of the text, whatever the tokenizer; None where
    no text is continued. held_out_accuracy: the share of pairs whose better reply it prefers; None
    where nothing is compared. first_process: whether this process is to tell of it.
    """

    model: Path
    packed: Path | None
    steps: int
    held_out_loss: float
    held_out_bits_per_byte: float | None
    held_out_accuracy: float | None
    first_process: bool

    @property
    def held_out_perplexity(self) -> float | None:
        """exp of the held-out loss, a mean by token, of all but those that begin a document.

        None where the loss is no mean by token.
        """
        return math.exp(self.held_out_loss) if self.held_out_accuracy is None else None


def train(
    recipe: Recipe, output: Path, *, fresh: bool = False, threads: int | None = None
) -> Result:
    """Follow a recipe in `output`, resuming what an earlier run left there.

    fresh: delete an earlier run's checkpoints first. threads: of the CPU; None: as many as the
    model is worth.
    Raises RecipeError for a recipe or text that cannot be used and for a run that diverged,
    FormatError for a damaged checkpoint, OutputError when a result cannot be written or another
    run is at work there, and what `text_files` does for text of the Hub. After Ctrl-C
    (KeyboardInterrupt) a checkpoint of the last finished step is there and the next call goes on
    from it.
    """
    arguments = training_arguments(recipe, output)
    first_process = arguments.process_index == 0
    begun = not fresh and last_checkpoint(output) is not None
    with arguments.main_process_first(local=False):
        here, commits = with_files_here(recipe, kept_commits(output) if begun else {})
        objective = OBJECTIVES[recipe.kind](here)
    check_memory(recipe, objective.config, objective.frozen_parameters)
    torch.set_num_threads(threads or threads_worth(recipe, objective.config))
    progress = Progress(output / "log.jsonl", recipe.schedule)
    with ExitStack() as stack:
        if first_process:
            stack.enter_context(_failure_kept(output))
        if recipe.sharded:
            stack.enter_context(joined())
        with arguments.main_process_first(local=False):
            if first_process:
                stack.enter_context(locked(output))
                claim(recipe, output, fresh=fresh)
                progress.tell("reading the text")
            last = last_checkpoint(output)
            # One process reads all parts of a model in shards: the others would take as long.
            if last and (first_process or not recipe.sharded):
                check(last, recipe.schedule.steps)
            text = objective.prepare(output / "corpus", begun=last is not None)
            if first_process:
                keep_commits(output, commits)
            progress.window_tokens = objective.window_tokens
        set_seed(recipe.seed)
        interrupt = Interrupt(alone=arguments.world_size == 1)
        reporters = [progress, _curves(output, last)] if first_process else []
        with _told_in_a_line(output):
            trainer = objective.trainer(
                output=output, args=arguments, callbacks=[interrupt, *reporters]
            )
            model: Any = trainer.model
            if first_process:
                parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
                progress.tell(_opening(text, parameters, last))
            if last:
                trainer.resume_loss(last)
            with interrupt, progress:
                trainer.train(resume_from_checkpoint=str(last) if last else None)
                if interrupt.asked:
                    raise KeyboardInterrupt
                measured = trainer.final_evaluation()
        step = trainer.state.global_step
        _check_learned(measured["eval_loss"], trainer.guessing_loss, recipe.schedule, step)
        with _told_in_a_line(output):
            model = trainer.whole_model()
        if first_process:
            _export(recipe, model, trainer.processing_class, output, objective.pooling)
    return Result(
        model=output / ("adapter" if recipe.adapter else "model"),
        packed=output / "packed" if _packs(recipe) else None,
        steps=trainer.state.global_step,
        held_out_loss=measured["eval_loss"],
        held_out_bits_per_byte=measured.get("eval_bits_per_byte"),
        held_out_accuracy=measured.get("eval_accuracy"),
        first_process=first_process,
    )


def _opening(text: str, parameters: int, last: Path | None) -> str:
    threads = torch.get_num_threads()
    text += f"; {parameters:,} parameters; {threads} thread{'s' if threads > 1 else ''}"
    if last:
        text += f"; going on from {last.name}"
    if launched_alone():
        text += "; one process (accelerate launch --cpu starts no more; --processes N does)"
    return text


def _check_learned(held_out_loss: float, guessing: float, schedule: Schedule, step: int) -> None:
    """Diverged for a model that is worse than guessing: that is no result to be handed on."""
    # A new model is a little worse than guessing evenly, and a run may be short.
    if held_out_loss <= guessing + 1:
        return
    worse = (
        f"its held-out loss is {held_out_loss:.4g} at step {step}, and guessing evenly has "
        f"{guessing:.4g}"
    )
    if schedule.rising_steps >= schedule.steps:
        raise Diverged(
            f"the run ended in its warm-up, and {worse}; no model was written; lower "
            "schedule.warmup_steps, or give more steps, and begin --fresh"
        )
    raise Diverged(
        f"the run diverged: {worse}; no model was written; lower schedule.stage_1 and stage_2, or "
        "raise warmup_steps, and begin --fresh"
    )


def _curves(output: Path, last: Path | None) -> TrainerCallback:
    # What a killed run wrote after its last checkpoint is hidden: it is about to come again.
    purge_step = step_of(last) + 1 if last else None
    try:
        writer = SummaryWriter(str(output / "tensorboard"), purge_step=purge_step)
        return TensorBoardCallback(writer)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write there ({error.strerror or error}); {remedy_of(error)}"
        ) from error


@contextmanager
def _failure_kept(output: Path) -> Iterator[None]:
    """Where a run diverges, its folder says so to who looks for a model there."""
    try:
        yield
    except Diverged as error:
        keep_failure(output, error)
        raise


@contextmanager
def _told_in_a_line(output: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            "the GPU's memory does not suffice; raise schedule.accumulate_steps or lower "
            "schedule.batch_windows"
        ) from error
    except RuntimeError as error:
        if processes() > 1 and _OF_OTHERS.search(str(error)):
            raise RecipeError(
                "another process of the run has ended; what it told says why"
            ) from error
        if "allocate memory" not in str(error):
            raise
        raise RecipeError(
            "the machine's memory does not suffice; raise schedule.accumulate_steps, lower "
            "schedule.batch_windows, or make the model smaller"
        ) from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write there ({error.strerror or error}); {remedy_of(error)}"
        ) from error


def _packs(recipe: Recipe) -> bool:
    return not (recipe.adapter or recipe.weights == "float" or recipe.engine_lacks)


def _export(
    recipe: Recipe, model: Any, tokenizer: Any, output: Path, pooling: Pooling | None
) -> None:
    if recipe.adapter:
        return fill(output / "adapter", lambda path: save_adapter(model, tokenizer, path))
    fill(output / "model", lambda path: save_masters(model, tokenizer, path, pooling))
    if _packs(recipe):
        source = Trained(model, tokenizer, output, pooling)
        fill(output / "packed", lambda path: write_hf(source, path))
