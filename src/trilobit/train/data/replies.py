"""Conversations as tokens: what comes before a reply, which is given, and the reply, to be learned.

Before every reply stand the very tokens that the engine is given when it is to reply there: the
same template, the same tokenizer, the same code (`prompter.py`). Where they go on from the reply
before, one example has both: a conversation is read once, however many replies it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trilobit.errors import ContextOverflow, RecipeError, RequestError
from trilobit.prompter import Prompter
from trilobit.train.data.documents import Message, alike, conversations, preferences
from trilobit.train.data.kept import kept
from trilobit.train.data.records import ALL_HELD_OUT, names, sum_of_files
from trilobit.train.data.tables import is_table
from trilobit.train.data.token_file import TokenFile, Tokens, token_dtype
from trilobit.train.data.windows import UNCOUNTED
from trilobit.train.recipes import Dpo, Embed, Recipe, Sft

Row = dict[str, torch.Tensor]  # input_ids, labels
Pair = tuple[Row, Row]
_Item = TypeVar("_Item", covariant=True)
# Batches are as long as a multiple of this: torch keeps what it made for the products of every
# length that it meets, megabytes for each in bfloat16 on a CPU.
_LENGTHS = 32


class _Listed(Protocol[_Item]):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> _Item: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Tokens end to end, whether each is learned, and where each example begins and ends."""

    tokens: Tokens
    learned: NDArray[np.bool_]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Row:
        start, end = self.places[index]
        ids = torch.from_numpy(self.tokens[start:end].astype(np.int64))
        learned = torch.from_numpy(self.learned[start:end].copy())
        return {"input_ids": ids, "labels": ids.masked_fill(~learned, UNCOUNTED)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """The examples of a run. left_out: those that end beyond the window."""

    train: Examples
    held_out: Examples
    left_out: int


_Line = TypeVar("_Line")
# Token ids, and whether each is to be predicted.
Example = tuple[list[int], list[bool]]
# Of a recipe, what belongs together: it is all held out or none of it is, left out or not. None
# stands for what even begins beyond the window.
Group = list[Example | None]
Groups = Callable[[Recipe, "Writer", bool], Iterator[Group]]

_WHAT = {Sft.kind: "reply of the assistant", Dpo.kind: "preference", Embed.kind: "pair of texts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """How texts become tokens. eos_id: ends a reply."""

    prompter: Prompter
    eos_id: int

    def given(self, messages: list[Message], where: str) -> list[int] | None:
        """What the engine is given to reply to them; None: more than the window."""
        try:
            return self.prompter.chat_ids(messages)
        except ContextOverflow:
            return None
        except RequestError as error:
            raise RecipeError(f"{where}: {error}") from None

    def example(self, given: list[int], reply: str) -> Example:
        """A reply to what is given, which is learned to its end."""
        assert self.prompter.tokenizer is not None
        ids = [*self.prompter.tokenizer.encode(reply.strip()), self.eos_id]
        return [*given, *ids], [False] * len(given) + [True] * len(ids)


def prepare(
    recipe: Recipe,
    folder: Path,
    prompter: Prompter,
    eos_id: int,
    *,
    begun: bool,
    groups: Groups,
) -> Replies:
    """Make the examples of the recipe's files in `folder`, or map them.

    groups: what the files hold.
    Raises what `kept` does, and RecipeError for files that cannot be used.
    """

    writer = Writer(prompter=prompter, eos_id=eos_id)

    def write(partial: Path) -> dict[str, Any]:
        dtype = token_dtype(prompter.config.vocab_size)
        all_left_out = 0
        for part, held_out in (("train", False), ("held_out", True)):
            left_out = 0
            places: list[tuple[int, int]] = []
            with (
                TokenFile(partial / f"{part}.npy", dtype, None, None) as file,
                TokenFile(partial / f"{part}_learned.npy", np.dtype(bool), None, None) as learned,
            ):
                for group in groups(recipe, writer, held_out):
                    fitting = [
                        e for e in group if e is not None and len(e[0]) <= recipe.data.window
                    ]
                    if len(fitting) < len(group):
                        left_out += len(group)
                        continue
                    for ids, is_learned in fitting:
                        start = places[-1][1] if places else 0
                        places.append((start, start + len(ids)))
                        file.append(ids)
                        learned.append(is_learned)
            if not places:
                only = not (left_out or held_out) and any(groups(recipe, writer, True))
                raise _nothing(recipe, left_out, held_out=held_out, only=only)
            np.save(partial / f"{part}_places.npy", np.array(places, dtype=np.int64))
            all_left_out += left_out
        return {"left_out": all_left_out}

    key = _key(recipe, prompter, eos_id)
    about = kept(folder, key, write, tells=("left_out",), text=names(recipe), begun=begun)
    train, held_out = (
        Examples(
            tokens=np.load(folder / f"{part}.npy", mmap_mode="r"),
            learned=np.load(folder / f"{part}_learned.npy", mmap_mode="r"),
            places=np.load(folder / f"{part}_places.npy"),
        )
        for part in ("train", "held_out")
    )
    return Replies(train=train, held_out=held_out, left_out=about["left_out"])


def _nothing(recipe: Recipe, left_out: int, *, held_out: bool, only: bool) -> RecipeError:
    """What to tell of files that give no example. left_out: those beyond the window.

    only: what there is, is held out.
    """
    validation = recipe.validation_file() if held_out else None
    what = f"no {_WHAT[recipe.kind]} is {'held out' if held_out else 'to train on'}"
    if left_out:
        what += f", for all end beyond data.window, {recipe.data.window}; raise it, or add shorter"
    elif only and not recipe.data.validation:
        what += f"; {ALL_HELD_OUT}"
    elif held_out and not validation:
        what += f" by held_out_every = {recipe.data.held_out_every}; lower it, or add some"
    else:
        what += "; add some"
    return RecipeError(f"{validation or names(recipe)}: {what}")


def every_reply(recipe: Recipe, writer: Writer, held_out: bool) -> Iterator[Group]:
    """Every reply of the assistant in the recipe's conversations."""
    for where, messages in _lines(recipe, conversations, held_out=held_out):
        ids: list[int] = []
        learned: list[bool] = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant" or place == 0:
                continue
            given = writer.given(messages[:place], where)
            if given is None:
                yield [None]
                break  # those behind it are longer still
            example, new = writer.example(given, message["content"])
            if len(example) > recipe.data.window:
                yield [(example, new)]  # to be left out
                break
            if example[: len(ids)] == ids and len(ids) <= len(given):
                new[: len(ids)] = learned
            else:
                yield [(ids, learned)]
            ids, learned = example, new
        if ids:
            yield [(ids, learned)]


def chosen_and_rejected(recipe: Recipe, writer: Writer, held_out: bool) -> Iterator[Group]:
    """The two replies of each of the recipe's preferences: the better one comes first."""
    for where, preference in _lines(recipe, preferences, held_out=held_out):
        given = writer.given(preference.messages, where)
        replies = (preference.chosen, preference.rejected)
        yield [None if given is None else writer.example(given, reply) for reply in replies]


def two_alike(recipe: Recipe, writer: Writer, held_out: bool) -> Iterator[Group]:
    """The texts of each of the recipe's pairs that are alike, without replies."""
    for _, texts in _lines(recipe, alike, held_out=held_out):
        yield [writer.example(writer.prompter.encode(text), "") for text in texts]


def _lines(
    recipe: Recipe, read: Callable[[Path], Iterator[tuple[int, _Line]]], *, held_out: bool
) -> Iterator[tuple[str, _Line]]:
    """What a recipe's files hold, by line, and where it stands."""
    validation = recipe.validation_file()
    for path in [validation] if validation and held_out else recipe.data_files():
        for number, line in read(path):
            if validation or (number % recipe.data.held_out_every == 0) == held_out:
                yield f"{path}: {'row' if is_table(path) else 'line'} {number + 1}", line


def _key(recipe: Recipe, prompter: Prompter, eos_id: int) -> str:
    digest: Any = sum_of_files(recipe)
    data = recipe.data
    kind = (recipe.kind, "whole conversations")
    cut = (*kind, data.held_out_every, data.validation is not None, data.window, eos_id)
    digest.update(repr((cut, prompter.chat_template, prompter.add_bos)).encode())
    return str(digest.hexdigest())


class Pairs:
    """Examples by twos: the chosen reply and the rejected one, or two texts that are alike."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples) // 2

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._examples[2 * index], self._examples[2 * index + 1]


class TrainingReplies(Dataset[_Item], Generic[_Item]):
    """`count` examples: all of them again and again, each time shuffled anew by seed and place."""

    def __init__(self, examples: _Listed[_Item], *, count: int, seed: int) -> None:
        self._examples, self._count, self._seed = examples, count, seed
        self._drawn: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> _Item:
        epoch, place = divmod(index, len(self._examples))
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._drawn = epoch, generator.permutation(len(self._examples))
        return self._examples[int(self._drawn[1][place])]


class HeldOutReplies(Dataset[Row]):
    """The held-out examples in order."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        # None begins with its reply, so that all tokens of replies are predicted.
        self.counted_tokens = int(examples.learned.sum())

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Row:
        return self._examples[index]


def side_by_side(pairs: list[Pair]) -> Row:
    """Pairs as one batch: all that come first, then all that come second."""
    return padded([first for first, _ in pairs] + [second for _, second in pairs])


def padded(examples: list[Row]) -> Row:
    """Examples of several lengths as one batch; what is added behind them is not looked at."""
    longest = max(len(example["input_ids"]) for example in examples)
    length = -(-longest // _LENGTHS) * _LENGTHS
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
