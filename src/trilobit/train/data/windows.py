"""Packed windows: all documents end to end, cut into windows of equal length.

The order in which a run sees its windows is a function of (seed, index) alone: no state of
a random generator has to survive a crash, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trilobit.errors import RecipeError
from trilobit.train.data.token_file import Tokens

UNCOUNTED = -100  # of a label, as transformers has it
_REPLACING = 1  # tells draws of an index from those of an epoch

Example = dict[str, torch.Tensor]


class Order(Protocol):
    """Windows without end, by their number in the run."""

    def __getitem__(self, index: int, /) -> Tokens: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What begins and ends every document; None where nothing does."""

    bos_id: int | None
    eos_id: int | None

    def positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Places of tokens in their documents, as far as a window shows them.

        ids: `[..., T]`; the same shape comes back. A window's first token is at place 0.
        """
        before = torch.nn.functional.pad(ids[..., :-1], (1, 0), value=-1)
        begins = torch.ones_like(ids, dtype=torch.bool)
        if self.eos_id is not None:
            begins &= before.eq(self.eos_id)
        if self.bos_id is not None:  # which may be the same token
            begins &= ids.eq(self.bos_id)
        places = torch.arange(ids.shape[-1]).expand_as(ids)
        return places - (places * begins).cummax(dim=-1).values


class Passes:
    """The windows of one text, pass after pass, each time shifted and shuffled anew.

    seeds: that of the run, and what tells this text from others in it.
    name: of the text, for the RecipeError where it is too short.
    """

    def __init__(
        self, tokens: Tokens, *, window: int, seeds: Sequence[int], name: str = ""
    ) -> None:
        self._tokens, self._window, self._seeds = tokens, window, tuple(seeds)
        # One window less than fit, so that an epoch can be shifted by less than one window.
        self.per_epoch = len(tokens) // window - 1
        if self.per_epoch < 1:
            raise RecipeError(
                f"the training text {f'{name} ' if name else ''}has {len(tokens)} tokens, too few "
                f"for windows of {window}; add text or lower data.window"
            )
        self._epoch_order = lru_cache(maxsize=2)(self._draw_epoch)

    def __getitem__(self, index: int) -> Tokens:
        epoch, place = divmod(index, self.per_epoch)
        shift, order = self._epoch_order(epoch)
        start = shift + int(order[place]) * self._window
        return self._tokens[start : start + self._window]

    def _draw_epoch(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        seed, *others = self._seeds
        generator = np.random.default_rng([seed, epoch, *others])
        return int(generator.integers(self._window)), generator.permutation(self.per_epoch)


class TrainingWindows(Dataset[Example]):
    """`count` windows, in their order.

    short: if given, those before the window `whole_from` are `[parts, short]`.
    ends: if given, examples tell the places of tokens in their documents.
    replace: share of the input tokens that are drawn anew, by `seed` and place, from all of
        `vocab_size`; labels stay.
    """

    def __init__(
        self,
        order: Order,
        *,
        count: int,
        short: int | None = None,
        whole_from: int = 0,
        ends: Ends | None = None,
        replace: float = 0.0,
        seed: int = 0,
        vocab_size: int = 0,
    ) -> None:
        self._order, self._count, self._ends = order, count, ends
        self._short, self._whole_from = short, whole_from
        self._replace, self._seed, self._vocab_size = replace, seed, vocab_size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        tokens = self._order[index]
        if self._short and index < self._whole_from:
            tokens = tokens.reshape(-1, self._short)
        example = _example(tokens, self._ends)
        if self._replace:
            example["input_ids"] = self._replaced(example["input_ids"], index)
        return example

    def _replaced(self, ids: torch.Tensor, index: int) -> torch.Tensor:
        generator = np.random.default_rng([self._seed, index, _REPLACING])
        chosen = torch.from_numpy(generator.random(ids.shape) < self._replace)
        others = torch.from_numpy(generator.integers(self._vocab_size, size=ids.shape))
        return torch.where(chosen, others, ids)


class HeldOutWindows(Dataset[Example]):
    """The held-out tokens in order, in whole windows.

    bos_id: begins every document. It always follows an end, so that it costs nothing to predict;
        it is not counted, and each window's first token cannot be.
    ends: as of `TrainingWindows`. name: as of `Passes`.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        window: int,
        bos_id: int | None,
        ends: Ends | None = None,
        name: str = "",
    ) -> None:
        self._tokens, self._window, self._bos_id, self._ends = tokens, window, bos_id, ends
        if len(self) < 1:
            raise RecipeError(
                f"the held-out text {f'{name} ' if name else ''}has {len(tokens)} tokens, less "
                f"than one window of {window}; lower data.held_out_every or data.window"
            )
        windows = tokens[: len(self) * window].reshape(-1, window)
        self.counted_tokens = sum(
            int((row[1:] != (-1 if bos_id is None else bos_id)).sum()) for row in windows
        )

    def __len__(self) -> int:
        return len(self._tokens) // self._window

    def __getitem__(self, index: int) -> Example:
        start = index * self._window
        example = _example(self._tokens[start : start + self._window], self._ends)
        if self._bos_id is not None:
            ids = example["input_ids"]
            example["labels"] = ids.masked_fill(ids == self._bos_id, UNCOUNTED)
        return example


def batch_of(examples: list[Example]) -> Example:
    """Windows `[T]`, or their parts `[P, T]`, one below the other; what is one number a window."""
    return {
        name: torch.stack(values) if values[0].ndim == 0 else torch.stack(values).flatten(0, -2)
        for name, values in ((n, [e[n] for e in examples]) for n in examples[0])
    }


def _example(tokens: Tokens, ends: Ends | None) -> Example:
    ids = torch.from_numpy(tokens.astype(np.int64))
    example = {"input_ids": ids, "labels": ids}
    if ends is not None:
        example["position_ids"] = ends.positions(ids)
    return example
