"""Packed windows: all documents end to end, cut into windows of equal length.

The tokens lie in one array on disk, made once and mapped afterwards. The order in which a
run sees its windows is a function of (seed, index) alone: no state of a random generator
has to survive a crash, and a resumed run goes on exactly where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from trilobit.errors import OutputError, RecipeError
from trilobit.train.bpe import BOS, EOS, train_tokenizer
from trilobit.train.recipe import Recipe
from trilobit.train.text import split_held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The tokens of a run: uint16 arrays, mapped from disk, and their tokenizer's file."""

    tokenizer_file: Path
    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    held_out_characters: int


class TrainingWindows(Dataset[dict[str, torch.Tensor]]):
    """`count` windows: the corpus again and again, each time shifted and shuffled anew."""

    def __init__(self, tokens: NDArray[np.uint16], *, window: int, count: int, seed: int) -> None:
        self._tokens, self._window, self._count, self._seed = tokens, window, count, seed
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
        return _example(self._tokens[start : start + self._window])

    def _draw_epoch(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        generator = np.random.default_rng([self._seed, epoch])
        return int(generator.integers(self._window)), generator.permutation(self.per_epoch)


class HeldOutWindows(Dataset[dict[str, torch.Tensor]]):
    """The held-out tokens in order, in whole windows."""

    def __init__(self, tokens: NDArray[np.uint16], *, window: int) -> None:
        self._tokens, self._window = tokens, window
        if len(self) < 1:
            raise RecipeError(
                f"the held-out text has {len(tokens)} tokens, less than one window of {window}; "
                "lower data.held_out_every or data.window"
            )

    def __len__(self) -> int:
        return len(self._tokens) // self._window

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self._window
        return _example(self._tokens[start : start + self._window])


def prepare(recipe: Recipe, folder: Path) -> Corpus:
    """Tokenise the recipe's text into `folder`, or map what an earlier run left there.

    Raises RecipeError for text that cannot be used, OutputError when it cannot be written.
    """
    key = _key(recipe)
    key_file, tokenizer_file = folder / "corpus.json", folder / "tokenizer.json"
    train_file, held_out_file = folder / "train.npy", folder / "held_out.npy"
    if not key_file.exists() or json.loads(key_file.read_text())["key"] != key:
        train, held_out = split_held_out(
            recipe.data_files(),
            source=recipe.data.source,
            held_out_every=recipe.data.held_out_every,
        )
        tokenizer = train_tokenizer(train, recipe.data.vocab_size)
        about = {"key": key, "held_out_characters": sum(map(len, held_out))}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The key file comes last: without it the folder counts as empty.
            key_file.unlink(missing_ok=True)
            _replace(tokenizer_file, lambda path: tokenizer.save(str(path)))
            _replace(train_file, lambda path: np.save(path, _encode(tokenizer, train)))
            _replace(held_out_file, lambda path: np.save(path, _encode(tokenizer, held_out)))
            _replace(key_file, lambda path: path.write_text(json.dumps(about)))
        except OSError as error:
            raise OutputError(f"{folder}: cannot write the tokens: {error.strerror}") from error
    return Corpus(
        tokenizer_file=tokenizer_file,
        train=np.load(train_file, mmap_mode="r"),
        held_out=np.load(held_out_file, mmap_mode="r"),
        held_out_characters=json.loads(key_file.read_text())["held_out_characters"],
    )


def _example(tokens: NDArray[np.uint16]) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(tokens.astype(np.int64))
    return {"input_ids": ids, "labels": ids}


def _encode(tokenizer: Tokenizer, texts: Iterable[str]) -> NDArray[np.uint16]:
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids += [bos, *encoding.ids, eos]
    return np.array(ids, dtype=np.uint16)


def _key(recipe: Recipe) -> str:
    """Changes when the text files or how they are cut into tokens change."""
    digest = hashlib.sha256()
    for path in recipe.data_files():
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise RecipeError(
                f"{path}: cannot read the training text ({error.strerror}); "
                "name it with data.files or --data"
            ) from error
    data = recipe.data
    digest.update(repr((data.source, data.held_out_every, data.vocab_size)).encode())
    return digest.hexdigest()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name (same ending), then rename: the file is whole or not there."""
    partial = path.with_name("partial-" + path.name)
    write(partial)
    os.replace(partial, path)
