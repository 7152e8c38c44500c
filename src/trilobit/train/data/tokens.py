"""The tokens of a run: made once, in one pass over the text, and mapped from disk afterwards.

Neither the text nor the tokens are ever in memory at once.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from trilobit.errors import RecipeError
from trilobit.train.data.bpe import BOS, EOS, train_tokenizer
from trilobit.train.data.documents import documents
from trilobit.train.data.kept import kept
from trilobit.train.data.records import ALL_HELD_OUT, names, sum_of_files
from trilobit.train.data.token_file import TokenFile, Tokens, token_dtype
from trilobit.train.recipes import Ingredient, Pretrain

# Characters of one call to the tokenizer, which works in parallel over documents and needs
# some 100 bytes for each.
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTokenizer:
    """A checkpoint's own tokenizer: its tokenizer.json, and what begins and ends a document."""

    data: bytes
    bos_id: int | None
    eos_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Tokens: arrays as narrow as the vocabulary allows, mapped from disk.

    name: of a part of a mixture. held_out_bytes: of the held-out text in UTF-8.
    bos_id: what begins every document; None where nothing does.
    """

    name: str
    train: Tokens
    held_out: Tokens
    held_out_bytes: int
    bos_id: int | None

    @property
    def tokens_per_byte(self) -> float:
        """Of the held-out text: its tokens and its documents' ends, without their beginnings."""
        begins = 0 if self.bos_id is None else int((self.held_out == self.bos_id).sum())
        return (len(self.held_out) - begins) / self.held_out_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus(Text):
    """The tokens of a run. parts: of a mixture, one behind the other."""

    tokenizer_file: Path
    parts: tuple[Text, ...] = ()


def prepare(
    recipe: Pretrain, folder: Path, *, begun: bool = False, given: GivenTokenizer | None = None
) -> Corpus:
    """Tokenise the recipe's text into `folder`, or map what an earlier run left there.

    What is damaged there is made again. given: the tokenizer, where none is to be trained.
    begun: a model was trained on these tokens already, so that they may not become others.
    Raises RecipeError for text that cannot be used, FormatError for tokens that are lost,
    OutputError when they cannot be written.
    """
    tokenizer = _given_tokenizer(given) if given else None
    bos_id, eos_id = (given.bos_id, given.eos_id) if given else (None, None)

    mixture = recipe.data.mixture

    def write(partial: Path) -> dict[str, Any]:
        nonlocal tokenizer, bos_id, eos_id
        trained, held_out_bytes = _read_through(recipe, train=tokenizer is None)
        if trained:
            tokenizer, bos_id, eos_id = trained, trained.token_to_id(BOS), trained.token_to_id(EOS)
        assert tokenizer is not None
        # A text that spells a special token is text.
        tokenizer.encode_special_tokens = True
        last_id = max(
            *tokenizer.get_vocab(with_added_tokens=True).values(), bos_id or 0, eos_id or 0
        )
        dtype = token_dtype(last_id + 1)
        with (
            TokenFile(partial / "train.npy", dtype, bos_id, eos_id) as train,
            TokenFile(partial / "held_out.npy", dtype, bos_id, eos_id) as held_out,
        ):
            ends = [[0, 0] for _ in recipe.data.ingredients]
            for batch in _batches(_split(recipe)):
                encoded = _encode(tokenizer, [text for _, _, text in batch])
                for (part, is_held_out, _), ids in zip(batch, encoded, strict=True):
                    (held_out if is_held_out else train).append(ids)
                    ends[part] = [train.length, held_out.length]
        # Not tokenizer.save: it tells of a full disk by an exception of no kind.
        json_text = given.data if given else tokenizer.to_str(pretty=True).encode()
        (partial / "tokenizer.json").write_bytes(json_text)
        told = {"held_out_bytes": sum(held_out_bytes), "bos_id": bos_id}
        return {**told, "ends": ends, "bytes": held_out_bytes} if mixture else told

    about = kept(
        folder,
        _key(recipe, given),
        write,
        tells=("held_out_bytes", "bos_id", *(("ends", "bytes") if mixture else ())),
        text=names(recipe),
        begun=begun,
    )
    train, held_out = (
        np.load(folder / name, mmap_mode="r") for name in ("train.npy", "held_out.npy")
    )
    parts = []
    begin = [0, 0]
    for part, end, size in zip(mixture, about.get("ends", ()), about.get("bytes", ()), strict=True):
        trained, kept_back = (
            tokens[slice(*span)]
            for tokens, *span in zip((train, held_out), begin, end, strict=True)
        )
        parts.append(
            Text(
                name=part.name,
                train=trained,
                held_out=kept_back,
                held_out_bytes=size,
                bos_id=about["bos_id"],
            )
        )
        begin = end
    return Corpus(
        tokenizer_file=folder / "tokenizer.json",
        name="",
        train=train,
        held_out=held_out,
        held_out_bytes=about["held_out_bytes"],
        bos_id=about["bos_id"],
        parts=tuple(parts),
    )


def _read_through(recipe: Pretrain, *, train: bool) -> tuple[Tokenizer | None, list[int]]:
    """The tokenizer of the training part, if one is to be trained, and bytes held out by text."""
    parts = recipe.data.ingredients
    counts = [{False: 0, True: 0} for _ in parts]
    held_out_bytes = [0 for _ in parts]

    def training_texts() -> Iterator[str]:
        for part, is_held_out, text in _split(recipe):
            counts[part][is_held_out] += 1
            if is_held_out:
                held_out_bytes[part] += len(text.encode())
            else:
                yield text

    tokenizer = None
    if train:
        tokenizer = train_tokenizer(training_texts(), recipe.data.vocab_size)
    else:
        deque(training_texts(), maxlen=0)
    for part, count in zip(parts, counts, strict=True):
        _check_count(recipe, part, trained=count[False], held_out=count[True])
    return tokenizer, held_out_bytes


def _check_count(recipe: Pretrain, part: Ingredient, *, trained: int, held_out: int) -> None:
    files, validation = names(recipe, part.files), part.validation
    if not trained and (validation or not held_out):
        if not part.source:
            raise RecipeError(f"{files}: no text in it")
        raise RecipeError(
            f"{files}: no text with source {part.source!r} in it; data.source of the recipe "
            'asks for that: give the lines a "source", or leave it out'
        )
    if validation and not held_out:
        raise RecipeError(
            f"{recipe.folder / validation}: no text in it; data.validation is what is held out"
        )
    if not trained:
        raise RecipeError(f"{files}: too little text: no document is to train on; {ALL_HELD_OUT}")
    if not held_out:
        raise RecipeError(
            f"{files}: too little text: of {trained} documents none is held out by "
            f"held_out_every = {recipe.data.held_out_every}; lower it"
        )


def _given_tokenizer(given: GivenTokenizer) -> Tokenizer:
    """Read what `train/objectives` has looked through; nothing of it may cut a text short."""
    tokenizer = Tokenizer.from_str(given.data.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"the tokenizer failed on the training text ({reason})") from None
    return [encoding.ids for encoding in encodings]


def _split(recipe: Pretrain) -> Iterator[tuple[int, bool, str]]:
    """Every document, with the number of its ingredient, and whether it is held out."""
    every = recipe.data.held_out_every
    for part, text in enumerate(recipe.data.ingredients):
        for name in text.files:
            for number, document in documents(recipe.folder / name, text.source, text.column):
                yield part, not text.validation and number % every == 0, document
        if text.validation:
            for _, document in documents(recipe.folder / text.validation, column=text.column):
                yield part, True, document


def _batches(items: Iterable[tuple[int, bool, str]]) -> Iterator[list[tuple[int, bool, str]]]:
    batch: list[tuple[int, bool, str]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item[2])
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _key(recipe: Pretrain, given: GivenTokenizer | None) -> str:
    """Changes when the text files or how they are cut into tokens change."""
    digest: Any = sum_of_files(recipe)
    data = recipe.data
    cut = (data.source, data.held_out_every, data.vocab_size, data.validation is not None)
    digest.update(repr(cut).encode())
    if data.column != "text":
        digest.update(data.column.encode())
    for part in data.mixture:
        validated = part.validation is not None
        digest.update(
            repr((part.name, len(part.files), part.source, part.column, validated)).encode()
        )
    if given:
        digest.update(hashlib.sha256(given.data).digest())
        digest.update(repr((given.bos_id, given.eos_id)).encode())
    return str(digest.hexdigest())
