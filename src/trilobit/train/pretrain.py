"""Run a recipe: text in, a ternary model as a Hugging Face directory out.

`transformers.Trainer` does the loop. What is ours is around it: the data order, the
schedule, checkpoints that are whole or absent, and the export. A run's folder:

    recipe.json       what this run is; another recipe may not resume here
    corpus/           the tokenizer and the tokens
    checkpoint-N/     loadable models, with what it takes to go on
    tensorboard/      the curves
    log.jsonl         the same as lines
    model/, packed/   the result: float32 masters, and packed codes
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    BitNetConfig,
    BitNetForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import rotate_checkpoints

from trilobit.errors import OutputError, RecipeError
from trilobit.nn import set_quantised_share, swap_linears
from trilobit.train.bpe import as_hugging_face
from trilobit.train.corpus import prepare
from trilobit.train.export import save_masters, save_packed
from trilobit.train.progress import Progress
from trilobit.train.recipe import Recipe
from trilobit.train.schedule import TwoStage, quantised_share
from trilobit.train.windows import HeldOutWindows, TrainingWindows

# The newest may be the one whose disk ran full; keep one before it.
CHECKPOINTS_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Where a finished run's model lies, and how well it predicts the held-out text."""

    model: Path
    packed: Path | None
    steps: int
    held_out_loss: float

    @property
    def held_out_perplexity(self) -> float:
        return math.exp(self.held_out_loss)


def pretrain(recipe: Recipe, output: Path, *, fresh: bool = False) -> Result:
    """Train the recipe's model in `output`, resuming what an earlier run left there.

    fresh: delete an earlier run's checkpoints first.
    Raises RecipeError for a recipe or text that cannot be used, OutputError when a result
    cannot be written. After Ctrl-C (KeyboardInterrupt) a checkpoint of the last finished
    step is there and the next call goes on from it.
    """
    _claim(recipe, output, fresh=fresh)
    corpus = prepare(recipe, output / "corpus")
    set_seed(recipe.seed)
    tokenizer = as_hugging_face(corpus.tokenizer_file, recipe.model.max_position_embeddings)
    model = build_model(recipe, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    schedule, window = recipe.schedule, recipe.data.window
    progress = Progress(output / "log.jsonl", schedule, schedule.batch_windows * window)
    # transformers reads the folder of the curves from the environment only.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    trainer = _Pretrainer(
        recipe=recipe,
        output=output,
        model=model,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        train_dataset=TrainingWindows(
            corpus.train,
            window=window,
            count=schedule.steps * schedule.batch_windows,
            seed=recipe.seed,
        ),
        eval_dataset=HeldOutWindows(corpus.held_out, window=window),
        callbacks=[progress, _QuantisationWarmup(recipe)],
    )
    last = last_checkpoint(output)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except KeyboardInterrupt:
        trainer.save_now()
        raise
    finally:
        progress.close()
    held_out_loss = trainer.final_held_out_loss()
    return _export(recipe, model, tokenizer, output, held_out_loss)


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


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint of a run; a half-written one never bears such a name."""
    steps = {
        int(match[1]): path
        for path in output.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return steps[max(steps)] if steps else None


class _Pretrainer(Trainer):
    """The Trainer with our schedule, data order, and checkpoints that appear at once."""

    def __init__(self, *, recipe: Recipe, output: Path, **rest: Any) -> None:
        schedule = recipe.schedule
        arguments = TrainingArguments(
            output_dir=str(output),
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch_windows,
            per_device_eval_batch_size=schedule.batch_windows,
            learning_rate=schedule.stage_1[0],
            weight_decay=schedule.weight_decay,
            adam_beta1=0.9,
            adam_beta2=0.95,
            max_grad_norm=schedule.max_grad_norm,
            optim="adamw_torch_fused",
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
            report_to=["tensorboard"],
            seed=recipe.seed,
            dataloader_pin_memory=False,
        )
        self._recipe, self._run = recipe, output
        self._save_root = output
        super().__init__(args=arguments, **rest)
        # Its stock printer would repeat every log line on stdout.
        from transformers.trainer_callback import PrinterCallback

        self.remove_callback(PrinterCallback)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = TwoStage(optimizer or self.optimizer, self._recipe.schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_now(self) -> None:
        """Write a checkpoint of the last finished step, unless it is there already."""
        step = self.state.global_step
        if step and not (self._run / f"checkpoint-{step}").exists():
            self._save_checkpoint(self.model, None)

    def final_held_out_loss(self) -> float:
        """Held-out loss of the model as it stands now."""
        for entry in reversed(self.state.log_history):
            if "eval_loss" in entry and entry["step"] == self.state.global_step:
                return float(entry["eval_loss"])
        return float(self.evaluate()["eval_loss"])

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._save_root)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Written under another roof, then renamed: whoever is killed here leaves nothing
        # that looks like a checkpoint.
        name = f"checkpoint-{self.state.global_step}"
        self._save_root = self._run / "unfinished"
        shutil.rmtree(self._save_root, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            shutil.rmtree(self._run / name, ignore_errors=True)
            os.replace(self._save_root / name, self._run / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OutputError(
                f"{self._run / name}: cannot write the checkpoint ({_short(error)}); free some "
                "space and run the same command again: it resumes from the one before"
            ) from error
        finally:
            shutil.rmtree(self._save_root, ignore_errors=True)
            self._save_root = self._run
        rotate_checkpoints(output_dir=str(self._run), save_total_limit=CHECKPOINTS_KEPT)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_masters(self.model, self.processing_class, Path(output_dir or self._run))


class _QuantisationWarmup(TrainerCallback):
    """Raises λ from 0 to 1 over the first steps, if the recipe asks for it."""

    def __init__(self, recipe: Recipe) -> None:
        self._schedule = recipe.schedule

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if self._schedule.quantisation_warmup_steps:
            set_quantised_share(rest["model"], quantised_share(self._schedule, state.global_step))


def _claim(recipe: Recipe, output: Path, *, fresh: bool) -> None:
    """Make the folder this run's own, or refuse when it is another recipe's."""
    path = output / "recipe.json"
    # Through JSON, so that tuples compare equal to what was written.
    mine = json.loads(json.dumps(recipe.as_dict()))
    if fresh:
        for old in (*output.glob("checkpoint-*"), output / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        (output / "log.jsonl").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if path.exists() and last_checkpoint(output):
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in mine if theirs.get(key) != mine[key]]
        # A run may be made longer or shorter, and logged otherwise.
        if set(changed) - {"schedule", "log_every", "evaluate_every", "save_every"}:
            raise RecipeError(
                f"{output}: holds checkpoints of another recipe (it differs in "
                f"{', '.join(changed)}); choose another --output, or --fresh to delete them"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output}: cannot write there ({error.strerror})") from error


def _export(
    recipe: Recipe, model: Any, tokenizer: Any, output: Path, held_out_loss: float
) -> Result:
    set_quantised_share(model, 1.0)
    masters = _write_folder(output / "model", lambda path: save_masters(model, tokenizer, path))
    packed = None
    if recipe.weights == "ternary":
        packed = _write_folder(output / "packed", lambda path: save_packed(model, tokenizer, path))
    return Result(
        model=masters, packed=packed, steps=recipe.schedule.steps, held_out_loss=held_out_loss
    )


def _write_folder(folder: Path, write: Any) -> Path:
    partial = folder.with_name(f"unfinished-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"{folder}: cannot write the model ({_short(error)}); free some space and run the "
            "same command again"
        ) from error
    return folder


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
