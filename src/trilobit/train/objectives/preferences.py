"""Prefer one reply to another: `kind = "dpo"`.

The loss of a pair is `-log σ(β (m(chosen) - m(rejected)))`, where the margin `m` of a reply is the
logarithm of its probability under the model over that under the reference, the model that the run
started from. Source: Rafailov et al., arXiv 2305.18290, equation 7.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from trilobit.train.data.replies import chosen_and_rejected
from trilobit.train.data.windows import UNCOUNTED
from trilobit.train.objectives.frozen import frozen
from trilobit.train.objectives.pairs import Paired, PairTrainer
from trilobit.train.recipes import Dpo


class Preferred(Paired):
    """The model of a recipe, its reference, and the pairs of replies that it learns from."""

    _groups = staticmethod(chosen_and_rejected)
    _what = "preference"

    def __init__(self, recipe: Dpo) -> None:
        super().__init__(recipe)
        self._dpo = recipe
        self.frozen_parameters = self.config.parameters

    def _trainer(self, **arguments: Any) -> PreferenceTrainer:
        reference = self._start.model(self._dpo.weights)
        return PreferenceTrainer(reference=reference, beta=self._dpo.beta, **arguments)


class PreferenceTrainer(PairTrainer):
    """Tells a pair apart where the chosen reply has gained more than the rejected one."""

    guessing_loss = math.log(2)

    def __init__(self, *, reference: Any, beta: float, **rest: Any) -> None:
        super().__init__(**rest)
        self._reference, self._beta = frozen(reference, self.args, "reference"), beta

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss of a batch of pairs: all chosen ones, then all rejected ones."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad():
            reference = self._reference(**inputs).logits
        margins = log_probability(outputs.logits, labels) - log_probability(reference, labels)
        chosen, rejected = margins.chunk(2)
        if not model.training:
            self.told_apart(chosen > rejected)
        loss = -logsigmoid(self._beta * (chosen - rejected)).mean()
        return (loss, outputs) if return_outputs else loss


def log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Natural logarithms `[N]` of the probabilities of N replies.

    logits: `[N, T, vocab]`. labels: `[N, T]`, the tokens, and -100 where none is counted.
    """
    tokens = cross_entropy(
        logits[:, :-1].transpose(1, 2).float(),
        labels[:, 1:],
        ignore_index=UNCOUNTED,
        reduction="none",
    )
    return -tokens.sum(dim=-1)
