"""Conversations as tokens: what comes before a reply, which is given, and the reply, to be learned.

Every reply is an example of its own, and begins with the very tokens that the engine is given when
it is to reply there: the same template, the same tokenizer, the same code (`prompter.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trilobit.errors import ContextOverflow, RecipeError, RequestError
from trilobit.prompter import Prompter
from trilobit.train.data.documents import conversations, names, sum_of_files
from trilobit.train.data.kept import kept
from trilobit.train.data.tokens import TokenFile, Tokens, token_dtype
from trilobit.train.data.windows import UNCOUNTED
from trilobit.train.recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Tokens end to end, and of each example where it begins, its reply begins, and it ends."""

    tokens: Tokens
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, reply, end = self.places[index]
        ids = torch.from_numpy(self.tokens[start:end].astype(np.int64))
        labels = ids.clone()
        labels[: reply - start] = UNCOUNTED
        return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """The examples of a run. left_out: replies that end beyond the window."""

    train: Examples
    held_out: Examples
    left_out: int


def prepare(
    recipe: Recipe, folder: Path, prompter: Prompter, eos_id: int, *, begun: bool
) -> Replies:
    """Make the examples of the recipe's conversations in `folder`, or map them.

    Raises what `kept` does, and RecipeError for conversations that cannot be used.
    """

    def write(partial: Path) -> dict[str, Any]:
        dtype = token_dtype(prompter.config.vocab_size)
        left_out = 0
        for part, held_out in (("train", False), ("held_out", True)):
            places: list[tuple[int, int, int]] = []
            with TokenFile(partial / f"{part}.npy", dtype, None, None) as file:
                for given, reply in _examples(recipe, prompter, held_out=held_out):
                    ids = [*given, *reply, eos_id]
                    if len(ids) > recipe.data.window:
                        left_out += 1
                        continue
                    start = places[-1][2] if places else 0
                    places.append((start, start + len(given), start + len(ids)))
                    file.append(ids)
            if not places:
                what = "held out" if held_out else "to train on"
                raise RecipeError(
                    f"{names(recipe)}: no reply is {what} (of those found, {left_out} end beyond "
                    f"data.window, {recipe.data.window}); raise it, or add conversations"
                )
            np.save(partial / f"{part}_places.npy", np.array(places, dtype=np.int64))
        return {"left_out": left_out}

    key = _key(recipe, prompter, eos_id)
    about = kept(folder, key, write, tells=("left_out",), text=names(recipe), begun=begun)
    train, held_out = (
        Examples(
            tokens=np.load(folder / f"{part}.npy", mmap_mode="r"),
            places=np.load(folder / f"{part}_places.npy"),
        )
        for part in ("train", "held_out")
    )
    return Replies(train=train, held_out=held_out, left_out=about["left_out"])


def _examples(
    recipe: Recipe, prompter: Prompter, *, held_out: bool
) -> Iterator[tuple[list[int], list[int]]]:
    """What is given, and the reply to it, of every reply of the assistant."""
    for path, number, messages in _conversations(recipe, held_out=held_out):
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or place == 0:
                continue
            try:
                given = prompter.chat_ids(messages[:place])
            except ContextOverflow:
                break  # those behind it are longer still
            except RequestError as error:
                raise RecipeError(f"{path}: line {number + 1}: {error}") from None
            tokenizer = prompter.tokenizer
            assert tokenizer is not None
            yield given, tokenizer.encode(message["content"].strip())


def _conversations(
    recipe: Recipe, *, held_out: bool
) -> Iterator[tuple[Path, int, list[dict[str, str]]]]:
    validation = recipe.validation_file()
    if validation and held_out:
        for number, messages in conversations(validation):
            yield validation, number, messages
        return
    for path in recipe.data_files():
        for number, messages in conversations(path):
            apart = not validation and number % recipe.data.held_out_every == 0
            if apart == held_out:
                yield path, number, messages


def _key(recipe: Recipe, prompter: Prompter, eos_id: int) -> str:
    digest: Any = sum_of_files(recipe)
    data = recipe.data
    cut = (data.held_out_every, data.validation is not None, data.window, eos_id)
    digest.update(repr((cut, prompter.chat_template, prompter.add_bos)).encode())
    return str(digest.hexdigest())


class TrainingReplies(Dataset[dict[str, torch.Tensor]]):
    """`count` examples: all of them again and again, each time shuffled anew by seed and place."""

    def __init__(self, examples: Examples, *, count: int, seed: int) -> None:
        self._examples, self._count, self._seed = examples, count, seed
        self._drawn: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(index, len(self._examples))
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._drawn = epoch, generator.permutation(len(self._examples))
        return self._examples[int(self._drawn[1][place])]


class HeldOutReplies(Dataset[dict[str, torch.Tensor]]):
    """The held-out examples in order."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        # None begins with its reply, so that all tokens of replies are predicted.
        self.counted_tokens = int((examples.places[:, 2] - examples.places[:, 1]).sum())

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._examples[index]


def padded(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Examples of several lengths as one batch; what is added behind them is not looked at."""
    length = max(len(example["input_ids"]) for example in examples)
    batch = {"input_ids": 0, "labels": UNCOUNTED}
    rows = {
        name: torch.full((len(examples), length), empty, dtype=torch.int64)
        for name, empty in batch.items()
    }
    mask = torch.zeros((len(examples), length), dtype=torch.int64)
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        mask[row, :size] = 1
        for name, tokens in rows.items():
            tokens[row, :size] = example[name]
    return {**rows, "attention_mask": mask}
