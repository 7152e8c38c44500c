"""Dropout on what attention and feed-forward add to a token, for text that is read many times.

transformers' models have none there. Source of its use: arXiv 2305.13230.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

_ADDED = ("o_proj", "down_proj")


def drop_out(model: nn.Module, share: float) -> None:
    """While the model trains, zero a share of every output of these layers, and scale the rest up.

    Raises ValueError where no module is named so.
    """
    layers = [m for name, m in model.named_modules() if name.rpartition(".")[2] in _ADDED]
    if not layers:
        raise ValueError(f"no module is named {' or '.join(_ADDED)}")

    def drop(layer: nn.Module, given: Any, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, share, training=layer.training)

    for layer in layers:
        layer.register_forward_hook(drop)


class SeedSteps(TrainerCallback):
    """What a step draws is a function of the seed, the step and the process.

    So neither evaluations between the steps nor a run that was cut off change it.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seed torch anew."""
        place = np.random.SeedSequence([self._seed, state.global_step, args.process_index])
        torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))
