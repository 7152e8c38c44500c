"""Vectors of texts that are alike point alike: `kind = "embed"`.

The loss of a pair is InfoNCE: the cross-entropy of finding the text that is like the first one
among the second texts of all pairs beside it, by cosines over the temperature. Source: van den
Oord et al., arXiv 1807.03748, with the batch's others as negatives.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from trilobit.formats.pooling import Pooling
from trilobit.train.data.replies import two_alike
from trilobit.train.objectives.pairs import Paired, PairTrainer
from trilobit.train.recipes import Embed


class Contrastive(Paired):
    """The model of a recipe, and the pairs of texts that it learns from."""

    _groups = staticmethod(two_alike)
    _template = None

    def __init__(self, recipe: Embed) -> None:
        super().__init__(recipe)
        self._embed = recipe

    @property
    def pooling(self) -> Pooling:
        """The last token's state, of the token that ends a text."""
        return Pooling(end_ids=(self._eos_id,))

    def _trainer(self, **arguments: Any) -> ContrastiveTrainer:
        return ContrastiveTrainer(temperature=self._embed.temperature, **arguments)


class ContrastiveTrainer(PairTrainer):
    """Tells a pair apart where no other text beside it is nearer. temperature: of the cosines."""

    def __init__(self, *, temperature: float, **rest: Any) -> None:
        super().__init__(**rest)
        self._temperature = temperature

    @property
    def guessing_loss(self) -> float:
        """The loss of guessing evenly among the texts that are beside each other."""
        return math.log(self.args.per_device_eval_batch_size)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean loss of a batch of pairs: all first texts, then all second ones."""
        inputs.pop("labels")
        outputs = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        vectors = last_states(outputs.hidden_states[-1], inputs["attention_mask"])
        cosines = cosines_of(vectors)
        own = torch.arange(len(cosines), device=cosines.device)
        if not model.training:
            self.told_apart(cosines.argmax(dim=1) == own)
        loss = cross_entropy(cosines / self._temperature, own)
        return (loss, outputs) if return_outputs else loss


def last_states(states: Tensor, mask: Tensor) -> Tensor:
    """States `[N, hidden]` of the last tokens. states: `[N, T, hidden]`. mask: 1 of a token."""
    return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1].float()


def cosines_of(vectors: Tensor) -> Tensor:
    """Cosines `[N, N]` of all first texts with all second ones. vectors: `[2 N, hidden]`."""
    first, second = normalize(vectors, dim=-1).chunk(2)
    return first @ second.T
