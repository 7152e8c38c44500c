"""Continue text: the next token of every place of a window, for `kind = "pretrain"`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitNetConfig, BitNetForCausalLM

from trilobit.errors import RecipeError
from trilobit.formats.pooling import Pooling
from trilobit.model.config import ModelConfig
from trilobit.nn import swap_linears
from trilobit.nn.bitlinear import Weights
from trilobit.train.adapter import learner, start_of
from trilobit.train.compiled import compile_layers
from trilobit.train.data.bpe import as_hugging_face
from trilobit.train.data.mixture import HeldOutMixture, Mixture
from trilobit.train.data.tokens import Corpus, GivenTokenizer, prepare
from trilobit.train.data.windows import (
    UNCOUNTED,
    Ends,
    HeldOutWindows,
    Passes,
    TrainingWindows,
    batch_of,
)
from trilobit.train.dropout import SeedSteps, drop_out
from trilobit.train.objectives.by_text import ByText
from trilobit.train.objectives.tokens import TokenTrainer
from trilobit.train.recipes import Pretrain
from trilobit.train.recipes.mixture import shares
from trilobit.train.start import Start


class Causal:
    """The model of a recipe, and the windows that it learns from.

    Raises RecipeError, FormatError or UnsupportedModel when the model cannot be, before any text
    is read.
    """

    def __init__(self, recipe: Pretrain) -> None:
        self._recipe = recipe
        folder = recipe.start_folder()
        self._start = start_of(recipe, folder) if folder else None
        self._corpus: Corpus | None = None
        self._order: Passes | Mixture | None = None
        if recipe.data.window > self.config.max_position_embeddings:
            raise RecipeError(
                f"data.window is {recipe.data.window}, longer than the context of {folder}: "
                f"{self.config.max_position_embeddings}"
            )
        if self._start:
            self._start.check_rows(recipe.weights)

    # Of models that are looked at only.
    frozen_parameters = 0
    # No vectors of texts are learned.
    pooling: Pooling | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's shape; its vocabulary may turn out smaller than what was asked for."""
        if self._start:
            return self._start.config
        assert self._recipe.model is not None
        return self._recipe.model.config(self._recipe.data.vocab_size)

    def prepare(self, folder: Path, *, begun: bool) -> str:
        """Make the tokens in `folder`, or map them; what is there, in words.

        Raises what `tokens.prepare` does.
        """
        recipe = self._recipe
        self._corpus = corpus = prepare(recipe, folder, begun=begun, given=self._given)
        told = f"{len(corpus.train):,} tokens to train on, {len(corpus.held_out):,} held out"
        window, schedule = recipe.data.window, recipe.schedule
        if not corpus.parts:
            self._order = Passes(corpus.train, window=window, seeds=(recipe.seed,))
            return told
        texts = [
            Passes(part.train, window=window, seeds=(recipe.seed, number), name=part.name)
            for number, part in enumerate(corpus.parts)
        ]
        of_stages = shares(recipe.data.mixture)
        second_from = schedule.stage_1_steps * schedule.batch_windows
        self._order = mixture = Mixture(texts, of_stages, second_from)
        passes = mixture.passes(schedule.steps * schedule.batch_windows)
        by_text = zip(corpus.parts, *of_stages, passes, strict=True)
        return f"{told}\n" + "\n".join(
            f"{part.name}: {len(part.train):,} tokens; {one / sum(of_stages[0]):.1%} of stage 1 "
            f"and {two / sum(of_stages[1]):.1%} of stage 2, which pass it {times:.2f} times"
            for part, one, two, times in by_text
        )

    @property
    def window_tokens(self) -> float:
        """Tokens of a window."""
        return self._recipe.data.window

    def trainer(self, **life: Any) -> CausalTrainer:
        """A trainer of a new model on what was prepared. life: arguments of the trainer."""
        recipe, corpus = self._recipe, self._corpus
        assert corpus is not None, "prepare comes first"
        assert self._order is not None
        tokenizer = self._tokenizer()
        if self._start:
            model = self._student(self._start)
        else:
            special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            model = build_model(recipe, self._vocab_size(tokenizer), *special)
        if recipe.dropout:
            drop_out(model, recipe.dropout)
        if recipe.compile:
            plain = recipe.precision == "bf16" and not torch.cuda.is_available()
            compile_layers(model, plain_attention=plain)
        schedule = recipe.schedule
        ends = None
        if recipe.data.document_mask:
            given = self._given
            eos_id = given.eos_id if given else tokenizer.eos_token_id
            ends = Ends(bos_id=corpus.bos_id, eos_id=eos_id)
        train = TrainingWindows(
            self._order,
            count=schedule.steps * schedule.batch_windows,
            short=recipe.data.short_window,
            whole_from=schedule.stage_1_steps * schedule.batch_windows,
            ends=ends,
            replace=recipe.data.replace_tokens,
            seed=recipe.seed,
            vocab_size=model.config.vocab_size,
        )
        held_out = [
            HeldOutWindows(
                text.held_out,
                window=recipe.data.window,
                bos_id=text.bos_id,
                ends=ends,
                name=text.name,
            )
            for text in corpus.parts or (corpus,)
        ]
        mixture = self._order if isinstance(self._order, Mixture) else None
        trainer = self._trainer(
            recipe=recipe,
            model=model,
            processing_class=tokenizer,
            data_collator=batch_of,
            train_dataset=train,
            tokens_per_byte=corpus.tokens_per_byte,
            by_text=ByText(corpus.parts, mixture) if mixture else None,
            eval_dataset=HeldOutMixture(held_out) if mixture else held_out[0],
            **life,
        )
        if recipe.dropout:
            trainer.add_callback(SeedSteps(recipe.seed))
        return trainer

    @property
    def _given(self) -> GivenTokenizer | None:
        return self._start.tokenizer if self._start else None

    def _tokenizer(self) -> Any:
        if self._start:
            return self._start.hugging_face_tokenizer()
        assert self._corpus is not None
        context = self.config.max_position_embeddings
        return as_hugging_face(self._corpus.tokenizer_file, context)

    def _vocab_size(self, tokenizer: Any) -> int:
        return len(tokenizer)

    def _student(self, start: Start) -> Any:
        return learner(self._recipe, start)

    def _trainer(self, **arguments: Any) -> CausalTrainer:
        return CausalTrainer(**arguments)


class CausalTrainer(TokenTrainer):
    """Tells of its held-out text bits by byte too, which compare tokenizers.

    tokens_per_byte: of that text. by_text: what is to be told of a mixture.
    """

    def __init__(self, *, tokens_per_byte: float, by_text: ByText | None, **rest: Any) -> None:
        self._tokens_per_byte, self._by_text = tokens_per_byte, by_text
        super().__init__(**rest)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; while training, with the recipe's share of `log_partition`."""
        recipe: Any = self._recipe
        if not model.training and self._by_text:
            text = inputs["text"]
            inputs = {name: value for name, value in inputs.items() if name != "text"}
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self._by_text.add(outputs, inputs["labels"], text, self.accelerator)
            return (loss, outputs) if return_outputs else loss
        if not model.training or not recipe.z_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        count = (labels != UNCOUNTED).sum() if num_items_in_batch is None else num_items_in_batch
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        beside = log_partition(outputs["logits"], labels) / count
        if self.args.average_tokens_across_devices:  # as the Trainer does with the text's
            beside = beside * self.accelerator.num_processes
        loss = loss + recipe.z_loss * beside
        return (loss, outputs) if return_outputs else loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        prepared = super()._prepare_inputs(inputs)
        if "position_ids" in prepared:
            # Of places that begin anew transformers makes a mask, as long as it keeps no cache.
            prepared["use_cache"] = False
        return prepared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand on what is logged, with the bits that the held-out loss is by byte, and by text."""
        if "eval_loss" in logs:
            logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) * self._tokens_per_byte
            if self._by_text:
                logs |= self._by_text.bits_per_byte()
        elif "loss" in logs and self._by_text:
            windows = self.state.global_step * self._recipe.schedule.batch_windows
            logs |= self._by_text.passes(windows)
        super().log(logs, start_time)


def log_partition(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of log² Z over the tokens that are to be predicted, where Z = Σ exp(logit).

    logits: `[N, T, vocab]`. labels: `[N, T - 1]`, of the tokens behind the first; -100 where none
    counts.
    """
    return logits[:, :-1][labels != UNCOUNTED].float().logsumexp(dim=-1).square().sum()


def build_model(recipe: Pretrain, vocab_size: int, bos: int, eos: int) -> BitNetForCausalLM:
    """A fresh `BitNetForCausalLM` of the recipe's shape, its linears as its weights say."""
    shape = recipe.model
    assert shape is not None
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
        weights: Weights = "sign" if recipe.weights == "sign" else "absmean"
        swap_linears(model, weights=weights, hadamard=recipe.hadamard)
    return model
