"""The tokens of a run: made once, in one pass over the text, and mapped from disk afterwards.

Neither the text nor the tokens are ever in memory at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trilobit.errors import RecipeError
from trilobit.train.bpe import BOS, EOS, train_tokenizer
from trilobit.train.checkpoint import write_whole
from trilobit.train.recipe import Recipe
from trilobit.train.text import documents, unreadable

# Characters of one call to the tokenizer, which works in parallel over documents and needs
# some 100 bytes for each.
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The tokens of a run: uint16 arrays, mapped from disk, and their tokenizer's file."""

    tokenizer_file: Path
    train: NDArray[np.uint16]
    held_out: NDArray[np.uint16]
    held_out_characters: int


def prepare(recipe: Recipe, folder: Path, *, begun: bool = False) -> Corpus:
    """Tokenise the recipe's text into `folder`, or map what an earlier run left there.

    begun: a model was trained on these tokens already, so that they may not become others.
    Raises RecipeError for text that cannot be used, OutputError when it cannot be written.
    """
    key = _key(recipe)
    about = _about(folder)
    if about is not None and about["key"] != key:
        if begun:
            raise RecipeError(
                f"{folder.parent}: its checkpoints were trained on other text than "
                f"{', '.join(map(str, recipe.data_files()))} holds now; choose another --output, "
                "or --fresh to delete them"
            )
        about = None
    if about is None:
        about = _write(recipe, folder, key)
    return Corpus(
        tokenizer_file=folder / "tokenizer.json",
        train=np.load(folder / "train.npy", mmap_mode="r"),
        held_out=np.load(folder / "held_out.npy", mmap_mode="r"),
        held_out_characters=about["held_out_characters"],
    )


def _write(recipe: Recipe, folder: Path, key: str) -> dict[str, Any]:
    tokenizer, held_out_characters = _train_tokenizer(recipe)
    about = {"key": key, "held_out_characters": held_out_characters}

    def write(partial: Path) -> None:
        partial.mkdir(parents=True)
        with (
            _TokenFile(partial / "train.npy", tokenizer) as train,
            _TokenFile(partial / "held_out.npy", tokenizer) as held_out,
        ):
            for batch in _batches(_split(recipe)):
                texts = [text for _, text in batch]
                encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                for (is_held_out, _), encoding in zip(batch, encodings, strict=True):
                    (held_out if is_held_out else train).append(encoding.ids)
        # Not tokenizer.save: it tells of a full disk by an exception of no kind.
        json_text = tokenizer.to_str(pretty=True)
        (partial / "tokenizer.json").write_text(json_text, encoding="utf-8", newline="\n")
        (partial / "corpus.json").write_text(json.dumps(about), encoding="utf-8")

    write_whole(folder, write)
    return about


def _train_tokenizer(recipe: Recipe) -> tuple[Tokenizer, int]:
    """The tokenizer of the training part, and how many characters are held out."""
    count = {False: 0, True: 0}
    held_out_characters = 0

    def training_texts() -> Iterator[str]:
        nonlocal held_out_characters
        for is_held_out, text in _split(recipe):
            count[is_held_out] += 1
            if is_held_out:
                held_out_characters += len(text)
            else:
                yield text

    tokenizer = train_tokenizer(training_texts(), recipe.data.vocab_size)
    names = ", ".join(map(str, recipe.data_files()))
    if not any(count.values()):
        source = recipe.data.source
        raise RecipeError(f"{names}: no text{f' with source {source!r}' if source else ''} in it")
    for is_held_out, what, remedy in ((False, "to train on", "add text"), (True, "held out", "")):
        if not count[is_held_out]:
            raise RecipeError(
                f"{names}: too little text: of {count[not is_held_out]} documents none is {what} "
                f"by held_out_every = {recipe.data.held_out_every}; {remedy or 'lower it'}"
            )
    return tokenizer, held_out_characters


def _split(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    """Every document, with whether it is held out."""
    for path in recipe.data_files():
        for number, text in documents(path, recipe.data.source):
            yield number % recipe.data.held_out_every == 0, text


def _batches(items: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    batch: list[tuple[bool, str]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _TokenFile:
    """A .npy of uint16 that grows by one document at a time.

    The header comes first, as long as it will be, and again at the end with the length:
    numpy pads it so that it can.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self._path, self._length = path, 0
        self._bos, self._eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def append(self, ids: list[int]) -> None:
        tokens = np.array([self._bos, *ids, self._eos], dtype="<u2")
        self._file.write(tokens.tobytes())
        self._length += len(tokens)

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        about = {"descr": "<u2", "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, about)


def _about(folder: Path) -> dict[str, Any] | None:
    """What the key file says, if it is there and whole."""
    try:
        about = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        return {"key": about["key"], "held_out_characters": about["held_out_characters"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _key(recipe: Recipe) -> str:
    """Changes when the text files or how they are cut into tokens change."""
    digest = hashlib.sha256()
    for path in recipe.data_files():
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise unreadable(path, error) from error
    data = recipe.data
    digest.update(repr((data.source, data.held_out_every, data.vocab_size)).encode())
    return digest.hexdigest()
