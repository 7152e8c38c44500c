"""What learns pairs, and is measured by the share of held-out ones that it tells apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from trilobit.train.trainer import RunMixin


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
