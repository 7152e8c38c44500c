"""What learns pairs, and is measured by the share of held-out ones that it tells apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from trilobit.train.adapter import learner
from trilobit.train.data.replies import Pairs, TrainingReplies, side_by_side
from trilobit.train.objectives.replies import Supervised
from trilobit.train.trainer import RunMixin


class Paired(Supervised):
    """The model of a recipe, and the pairs that it learns from."""

    _what, _parts = "pair", 2

    @property
    def window_tokens(self) -> float:
        """Tokens of a pair, on the average."""
        return 2 * super().window_tokens

    def trainer(self, **life: Any) -> RunMixin:
        """A trainer of the model on what was prepared. life: arguments of the trainer."""
        recipe, texts = self._recipe, self._replies
        assert texts is not None, "prepare comes first"
        count = recipe.schedule.steps * recipe.schedule.batch_windows
        return self._trainer(
            recipe=recipe,
            model=learner(recipe, self._start),
            processing_class=self._start.hugging_face_tokenizer(),
            data_collator=side_by_side,
            train_dataset=TrainingReplies(Pairs(texts.train), count=count, seed=recipe.seed),
            eval_dataset=Pairs(texts.held_out),
            **life,
        )

    def _trainer(self, **arguments: Any) -> PairTrainer:
        raise NotImplementedError


class PairTrainer(RunMixin, Trainer):
    """Its losses are means over the pairs of a part of a step; the parts of a step are equal."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self.model_accepts_loss_kwargs = False  # which would be sums over a step's tokens
        self._apart: list[Tensor] = []

    def told_apart(self, right: Tensor) -> None:
        """Count held-out pairs. right: booleans `[N]`."""
        self._apart.append(right.float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand on what is logged, with the share of pairs that are told apart."""
        if "eval_loss" in logs:
            logs["eval_accuracy"] = float(self.accelerator.gather(torch.cat(self._apart)).mean())
            self._apart.clear()
        super().log(logs, start_time)
