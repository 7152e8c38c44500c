"""What every kind of training run has: a name, a schedule, and when it tells and saves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from trilobit.errors import RecipeError
from trilobit.train.recipes.plain import build, check_range, shown
from trilobit.train.recipes.schedule import MOST_STEPS, Schedule

Precision = Literal["float32", "bf16"]
Optimizer = Literal["adamw", "muon"]
Weights = Literal["ternary", "sign", "float"]
Activations = Literal["int8", "int4", "a4.8"]

# What a file's name begins with, which is one or several of a data set of the Hub.
OF_HUB = "hf://datasets/"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LONGEST_NAME = 100  # it names a folder
_MOST_WINDOW = 1 << 24  # the longest context of ModelConfig
_LONGEST_PATH = 4096  # that Linux opens


def check_path(key: str, path: str) -> None:
    """RecipeError for what cannot be the folder of a checkpoint."""
    if not 0 < len(path) <= _LONGEST_PATH:
        raise RecipeError(f"{key} is {shown(path)}; give the folder of a checkpoint")


def check_names(where: str, files: tuple[str, ...], validation: str | None) -> None:
    """RecipeError for what cannot be files to learn from, and one that is held out."""
    if not files:
        raise RecipeError(f"{where}.files is empty; name at least one text file")
    for name in (*files, *([validation] if validation is not None else ())):
        if not 0 < len(name) <= _LONGEST_PATH or "\0" in name:
            raise RecipeError(f"{where}: {shown(name)} is no name of a file")
    if validation in files:
        raise RecipeError(
            f"{where}.validation is {shown(validation)}, which is among {where}.files too; a "
            "model knows the text that it was trained on"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What is learned from, and what of it is held out.

    files: relative to the recipe's folder.
    validation: a file like those of `files`; if given, all of it is held out, and nothing of
        `files`.
    held_out_every: of each file, line n is held out where n is a multiple of this.
    window: tokens that are seen at once.
    """

    files: tuple[str, ...]
    validation: str | None = None
    held_out_every: int = 50
    window: int = 256

    def __post_init__(self) -> None:
        self._check_names()
        if self.held_out_every < 2:
            raise RecipeError(f"data.held_out_every is {shown(self.held_out_every)}; at least 2")
        check_range("data.held_out_every", self.held_out_every, 2, 1e9)
        if self.window < 2:
            raise RecipeError(f"data.window is {shown(self.window)}; at least 2")
        check_range("data.window", self.window, 2, _MOST_WINDOW)

    def _check_names(self) -> None:
        check_names("data", self.files, self.validation)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of all files that are learned from."""
        return self.files

    @property
    def validations(self) -> tuple[str, ...]:
        """Names of all files that are held out."""
        return () if self.validation is None else (self.validation,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """What learns beside a model that does not: B(A x) · alpha / rank, added to its matrices.

    dropout: of what an adapter is given, while it trains.
    targets: the matrices of a layer that have one.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        check_range("adapter.rank", self.rank, 1, 4096)
        check_range("adapter.alpha", self.alpha, 1, 1 << 16)
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"adapter.dropout is {self.dropout}; it must be from 0 to below 1")
        if not self.targets:
            raise RecipeError(f"adapter.targets is empty; name some of {', '.join(TARGETS)}")
        for name in self.targets:
            if name not in TARGETS:
                raise RecipeError(
                    f"adapter.targets names {shown(name)}; expected some of {', '.join(TARGETS)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run, whatever it learns; each kind adds its own keys.

    precision: of the products; "bf16" is for GPUs, and for CPUs that multiply it themselves
        (AVX512_BF16, AMX). Masters and roundings stay float32.
    optimizer: "muon" is Muon for the matrices, AdamW for the rest.
    start: directory of a Hugging Face checkpoint with float weights or masters; its shape and
        its tokenizer are then the run's. Relative to the recipe's folder.
    adapter: if given, the model `start` stays as it is, and an adapter beside it learns. It may
        then be in any form that runs.
    weights: "float" makes a baseline of the same size.
    sharded: let each process keep only its part of the model, its gradients and its moments.
    folder: where the recipe's file lies, for paths in it.
    """

    kind: ClassVar[str]
    # Whether an adapter can learn it.
    adapts: ClassVar[bool] = True
    # Whether its model can lie with several processes in shards.
    shards: ClassVar[bool] = True
    # What may be another when a run goes on; and its files may have moved.
    may_change: ClassVar[tuple[str, ...]] = (
        "schedule",
        "log_every",
        "evaluate_every",
        "save_every",
    )

    name: str
    schedule: Schedule
    data: Files
    start: str | None = None
    adapter: Lora | None = None
    weights: Weights = "ternary"
    precision: Precision = "float32"
    optimizer: Optimizer = "adamw"
    sharded: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250
    folder: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        if not self.name[:1].isalnum() or not all(c.isalnum() or c in "-_." for c in self.name):
            raise RecipeError(
                f"name is {shown(self.name)}; a letter or digit, then letters, digits, '-', '_' "
                "and '.'"
            )
        if len(self.name) > _LONGEST_NAME:
            raise RecipeError(f"name has {len(self.name)} characters; at most {_LONGEST_NAME}")
        if not 0 <= self.seed < 2**32:
            raise RecipeError(f"seed is {shown(self.seed)}; it must be from 0 to 4294967295")
        if min(self.log_every, self.evaluate_every, self.save_every) < 1:
            raise RecipeError("log_every, evaluate_every and save_every must be at least 1")
        for key in ("log_every", "evaluate_every", "save_every"):
            check_range(key, getattr(self, key), 1, MOST_STEPS)
        if self.start is not None:
            check_path("start", self.start)
        if self.adapter is not None:
            self._check_adapter()
        if self.sharded and not self.shards:
            raise RecipeError(f"key 'sharded' has no place in kind '{self.kind}'; leave it out")
        last = self.schedule.steps - 1
        if self.schedule.low_bit_steps is not None and self.activations_at(last) == "int8":
            raise RecipeError(
                "schedule.low_bit_steps has no place where activations is 'int8'; leave it out"
            )

    def _check_adapter(self) -> None:
        if not self.adapts:
            raise RecipeError(f"key 'adapter' has no place in kind '{self.kind}'; leave it out")
        if self.start is None:
            raise RecipeError("key 'start' is missing; give the model that the adapter is for")
        if self.sharded:
            raise RecipeError("sharded has no place beside an adapter; leave it out")
        if self.weights != "ternary":
            raise RecipeError(
                f"weights is '{self.weights}', but those of a model with an adapter stay as they "
                "are; leave it out"
            )
        if self.schedule.quantisation_warmup_steps:
            raise RecipeError(
                "schedule.quantisation_warmup_steps has no place beside an adapter, whose model "
                "is quantised already; leave it out"
            )

    @property
    def engine_lacks(self) -> str | None:
        """What our engine would have to do for this model and does not; None: nothing."""
        return None

    def activations_at(self, step: int) -> Activations:
        """What the inputs of layers are rounded to in step 0, 1, 2, ..."""
        return "int8"

    def data_files(self) -> list[Path]:
        """The training text's files, resolved against the recipe's folder."""
        return [self.folder / name for name in self.data.trained_on]

    def validation_file(self) -> Path | None:
        """The file of the text that is held out, where it is one of its own."""
        return None if self.data.validation is None else self.folder / self.data.validation

    def validation_files(self) -> list[Path]:
        """All files that are held out whole."""
        return [self.folder / name for name in self.data.validations]

    @property
    def is_of_hub(self) -> bool:
        """Whether some of its text must be fetched from the Hugging Face Hub."""
        return any(n.startswith(OF_HUB) for n in (*self.data.trained_on, *self.data.validations))

    def start_folder(self) -> Path | None:
        """The checkpoint to start from, if any."""
        return None if self.start is None else self.folder / self.start

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the folder: what the run is, not where it lies."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return {"kind": self.kind, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: Path = Path()) -> Self:
        """The recipe of plain values without their kind, each checked.

        Raises RecipeError for a key or a value that is not understood.
        """
        recipe: Self = build(cls, values)
        return dataclasses.replace(recipe, folder=folder)
