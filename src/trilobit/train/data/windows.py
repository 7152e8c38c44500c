"""Packed windows: all documents end to end, cut into windows of equal length.

The order in which a run sees its windows is a function of (seed, index) alone: no state of
a random generator has to survive a crash, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trilobit.errors import RecipeError
from trilobit.train.data.tokens import Tokens

UNCOUNTED = -100  # of a label, as transformers has it
_REPLACING = 1  # tells draws of an index from those of an epoch


class TrainingWindows(Dataset[dict[str, torch.Tensor]]):
    """`count` windows: the corpus again and again, each time shifted and shuffled anew.

    short: if given, those before the window `whole_from` are `[parts, short]`.
    replace: share of the input tokens that are drawn anew, from all of `vocab_size`; labels stay.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        window: int,
        count: int,
        seed: int,
        short: int | None = None,
        whole_from: int = 0,
        replace: float = 0.0,
        vocab_size: int = 0,
    ) -> None:
        self._tokens, self._window, self._count, self._seed = tokens, window, count, seed
        self._short, self._whole_from = short, whole_from
        self._replace, self._vocab_size = replace, vocab_size
        # One window less than fit, so that an epoch can be shifted by less than one window.
        self.per_epoch = len(tokens) // window - 1
        if self.per_epoch < 1:
            raise RecipeError(
                f"the training text has {len(tokens)} tokens, too few for windows of {window}; "
                "add text or lower data.window"
            )
        self._epoch_order = lru_cache(maxsize=2)(self._draw_epoch)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, self.per_epoch)
        shift, order = self._epoch_order(epoch)
        start = shift + int(order[place]) * self._window
        tokens = self._tokens[start : start + self._window]
        if self._short and index < self._whole_from:
            tokens = tokens.reshape(-1, self._short)
        example = _example(tokens)
        if self._replace:
            example["input_ids"] = self._replaced(example["input_ids"], index)
        return example

    def _replaced(self, ids: torch.Tensor, index: int) -> torch.Tensor:
        generator = np.random.default_rng([self._seed, index, _REPLACING])
        chosen = torch.from_numpy(generator.random(ids.shape) < self._replace)
        others = torch.from_numpy(generator.integers(self._vocab_size, size=ids.shape))
        return torch.where(chosen, others, ids)

    def _draw_epoch(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        generator = np.random.default_rng([self._seed, epoch])
        return int(generator.integers(self._window)), generator.permutation(self.per_epoch)


class HeldOutWindows(Dataset[dict[str, torch.Tensor]]):
    """The held-out tokens in order, in whole windows.

    bos_id: begins every document. It always follows an end, so that it costs nothing to predict;
        it is not counted, and each window's first token cannot be.
    """

    def __init__(self, tokens: Tokens, *, window: int, bos_id: int | None) -> None:
        self._tokens, self._window, self._bos_id = tokens, window, bos_id
        if len(self) < 1:
            raise RecipeError(
                f"the held-out text has {len(tokens)} tokens, less than one window of {window}; "
                "lower data.held_out_every or data.window"
            )
        windows = tokens[: len(self) * window].reshape(-1, window)
        self.counted_tokens = sum(
            int((row[1:] != (-1 if bos_id is None else bos_id)).sum()) for row in windows
        )

    def __len__(self) -> int:
        return len(self._tokens) // self._window

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self._window
        example = _example(self._tokens[start : start + self._window])
        if self._bos_id is not None:
            ids = example["input_ids"]
            example["labels"] = ids.masked_fill(ids == self._bos_id, UNCOUNTED)
        return example


def batch_of(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Windows `[T]`, or their parts `[P, T]`, one below the other."""
    return {
        name: torch.stack([example[name] for example in examples]).flatten(0, -2)
        for name in examples[0]
    }


def _example(tokens: Tokens) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(tokens.astype(np.int64))
    return {"input_ids": ids, "labels": ids}
