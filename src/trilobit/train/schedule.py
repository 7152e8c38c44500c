"""The two-stage schedule of the BitNet papers, for learning rate and weight decay.

A ternary model likes a learning rate that a float model would not survive: the masters
must move far for a code to change. So the first half runs high, with weight decay; then
the rate drops abruptly and the decay goes to zero, which lets the codes settle (a large
master is a confident code). The loss falls steeply at that cut.
Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ", section 3; 2B4T report, 3.1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from trilobit.train.recipes import Schedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """The learning rate of step 0, 1, 2, ..."""
    first = schedule.stage_1_steps
    if step < first:
        (start, end), done = schedule.stage_1, step / first
    else:
        (start, end), done = schedule.stage_2, (step - first) / max(schedule.steps - first, 1)
    done = min(done, 1.0)
    if schedule.decay == "cosine":
        done = (1.0 - math.cos(math.pi * done)) / 2
    rising = schedule.rising_steps
    warm = min(1.0, (step + 1) / rising) if rising else 1.0
    return warm * (start + (end - start) * done)


def weight_decay(schedule: Schedule, step: int) -> float:
    """The weight decay of a step, which is constant in each stage."""
    first = step < schedule.stage_1_steps
    return schedule.weight_decay if first else schedule.stage_2_weight_decay


def quantised_share(schedule: Schedule, step: int) -> float:
    """λ of the quantisation warm-up: 0 is float, 1 is fully quantised."""
    warmup = schedule.quantisation_warmup_steps
    return min(step / warmup, 1.0) if warmup else 1.0


class TwoStage(LRScheduler):
    """Sets both rates in every group; groups that start without weight decay stay so.

    A group's `rate`, if it has one, multiplies its learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self._schedule = schedule
        self._rates = [group.get("rate", 1.0) for group in optimizer.param_groups]
        self._decays = [group["weight_decay"] > 0 for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of every group."""
        rate = learning_rate(self._schedule, self.last_epoch)
        return [rate * times for times in self._rates]

    def step(self, epoch: int | None = None) -> None:
        """Go on by one step of the optimiser."""
        super().step(epoch)
        decay = weight_decay(self._schedule, self.last_epoch)
        for group, decays in zip(self.optimizer.param_groups, self._decays, strict=True):
            group["weight_decay"] = decay if decays else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The place only: the schedule belongs to the recipe, which may have been prolonged."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the place of `state_dict` in this schedule."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        rates = self.get_lr()
        for group, rate, decays in zip(
            self.optimizer.param_groups, rates, self._decays, strict=True
        ):
            group["lr"] = rate
            group["weight_decay"] = weight_decay(self._schedule, self.last_epoch) * decays
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
