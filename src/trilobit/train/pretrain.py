"""Run a recipe: text in, a ternary model as a Hugging Face directory out.

A run's folder:

    recipe.json       what this run is; another recipe may not resume here
    corpus/           the tokenizer and the tokens
    checkpoint-N/     loadable models, with what it takes to go on
    tensorboard/      the curves
    log.jsonl         the same as lines
    model/, packed/   the result: float32 masters, and packed codes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    TrainerCallback,
    default_data_collator,
    set_seed,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from trilobit.errors import OutputError, RecipeError
from trilobit.nn import swap_linears
from trilobit.train.bpe import as_hugging_face
from trilobit.train.checkpoint import check, claim, last_checkpoint, remedy_of, write_whole
from trilobit.train.corpus import Corpus, prepare
from trilobit.train.export import save_masters, save_packed
from trilobit.train.interrupt import Interrupt
from trilobit.train.progress import Progress
from trilobit.train.recipe import Recipe
from trilobit.train.trainer import Pretrainer, training_arguments
from trilobit.train.windows import HeldOutWindows, TrainingWindows


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a finished run's model lies, and how well it predicts the held-out text.

    packed: None for a float model. first_process: whether this process is to tell of it.
    """

    model: Path
    packed: Path | None
    steps: int
    held_out_loss: float
    first_process: bool

    @property
    def held_out_perplexity(self) -> float:
        """exp of the held-out loss, which is a mean by token."""
        return math.exp(self.held_out_loss)


def pretrain(recipe: Recipe, output: Path, *, fresh: bool = False) -> Result:
    """Train the recipe's model in `output`, resuming what an earlier run left there.

    fresh: delete an earlier run's checkpoints first.
    Raises RecipeError for a recipe or text that cannot be used, FormatError for a damaged
    checkpoint, OutputError when a result cannot be written. After Ctrl-C (KeyboardInterrupt)
    a checkpoint of the last finished step is there and the next call goes on from it.
    """
    arguments = training_arguments(recipe, output)
    first_process = arguments.process_index == 0
    with arguments.main_process_first(local=False):
        if first_process:
            claim(recipe, output, fresh=fresh)
        last = last_checkpoint(output)
        if last:
            check(last)
        corpus = prepare(recipe, output / "corpus", begun=last is not None)
    set_seed(recipe.seed)
    tokenizer = as_hugging_face(corpus.tokenizer_file, recipe.model.max_position_embeddings)
    model = build_model(recipe, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    train_dataset, eval_dataset = _windows(recipe, corpus)
    interrupt = Interrupt(alone=arguments.world_size == 1)
    progress = Progress(
        output / "log.jsonl",
        recipe.schedule,
        recipe.schedule.batch_windows * recipe.data.window,
    )
    reporters = [progress, _curves(output, last)] if first_process else []
    trainer = Pretrainer(
        recipe=recipe,
        output=output,
        args=arguments,
        model=model,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        callbacks=[interrupt, *reporters],
    )
    if last:
        trainer.resume_loss(last)
    with interrupt, progress, _told_in_a_line(output):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        if interrupt.asked:
            raise KeyboardInterrupt
        held_out_loss = trainer.final_held_out_loss()
    if first_process:
        _export(recipe, model, tokenizer, output)
    return Result(
        model=output / "model",
        packed=None if recipe.weights == "float" else output / "packed",
        steps=trainer.state.global_step,
        held_out_loss=held_out_loss,
        first_process=first_process,
    )


def build_model(recipe: Recipe, vocab_size: int, bos: int, eos: int) -> BitNetForCausalLM:
    """A fresh `BitNetForCausalLM` of the recipe's shape, its linears as its weights say."""
    shape = recipe.model
    config = BitNetConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        rms_norm_eps=shape.rms_norm_eps,
        initializer_range=shape.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=bos,
        eos_token_id=eos,
        tie_word_embeddings=True,
    )
    model = BitNetForCausalLM(config)
    if recipe.weights != "float":
        swap_linears(model, weights="sign" if recipe.weights == "sign" else "absmean")
    return model


def _windows(recipe: Recipe, corpus: Corpus) -> tuple[TrainingWindows, HeldOutWindows]:
    window, schedule = recipe.data.window, recipe.schedule
    count = schedule.steps * schedule.batch_windows
    train = TrainingWindows(corpus.train, window=window, count=count, seed=recipe.seed)
    return train, HeldOutWindows(corpus.held_out, window=window)


def _curves(output: Path, last: Path | None) -> TrainerCallback:
    # What a killed run wrote after its last checkpoint is hidden: it is about to come again.
    purge_step = int(last.name.removeprefix("checkpoint-")) + 1 if last else None
    try:
        writer = SummaryWriter(str(output / "tensorboard"), purge_step=purge_step)
        return TensorBoardCallback(writer)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write there ({error.strerror or error}); {remedy_of(error)}"
        ) from error


@contextmanager
def _told_in_a_line(output: Path) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            "the GPU's memory does not suffice; raise schedule.accumulate_steps or lower "
            "schedule.batch_windows"
        ) from error
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output}: cannot write there ({error.strerror or error}); {remedy_of(error)}"
        ) from error


def _export(recipe: Recipe, model: Any, tokenizer: Any, output: Path) -> None:
    write_whole(output / "model", lambda path: save_masters(model, tokenizer, path))
    if recipe.weights != "float":
        write_whole(output / "packed", lambda path: save_packed(model, tokenizer, path))
