"""What is told of a mixture by its texts: how often each was passed, and bits a byte held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trilobit.train.data.mixture import Mixture
from trilobit.train.data.tokens import Text
from trilobit.train.data.windows import UNCOUNTED

# N windows, T tokens


class ByText:
    """Sums over the held-out windows of every text, while they are measured."""

    def __init__(self, texts: Sequence[Text], mixture: Mixture) -> None:
        self._texts, self._mixture = texts, mixture
        self._seen: list[Tensor] = []

    def passes(self, window: int) -> dict[str, float]:
        """How often each text was passed before a window of the run, for the log."""
        told = zip(self._texts, self._mixture.passes(window), strict=True)
        return {f"passes/{text.name}": times for text, times in told}

    def add(self, outputs: Any, labels: Tensor, text: Tensor, accelerator: Any) -> None:
        """Count windows of one process, and of those beside it.

        outputs: with logits `[N, T, vocab]`. labels: `[N, T]`. text: `[N]`, the windows' texts.
        """
        losses_NT = cross_entropy(
            outputs["logits"][:, :-1].transpose(1, 2).float(),
            labels[:, 1:],
            ignore_index=UNCOUNTED,
            reduction="none",
        )
        counts_N = (labels[:, 1:] != UNCOUNTED).sum(dim=1)
        # All are whole numbers that float32 holds, but for the losses.
        mine = torch.stack([text.float(), losses_NT.sum(dim=1), counts_N.float()], dim=1)
        self._seen.append(accelerator.gather_for_metrics(mine).double().cpu())

    def bits_per_byte(self) -> dict[str, float]:
        """Of each text, by the windows that were added; they are forgotten then."""
        seen = torch.cat(self._seen)
        self._seen.clear()
        told = {}
        for number, text in enumerate(self._texts):
            _, loss, count = seen[seen[:, 0] == number].sum(dim=0).tolist()
            nats = loss / count
            told[f"eval_bits_per_byte/{text.name}"] = nats / math.log(2) * text.tokens_per_byte
        return told
