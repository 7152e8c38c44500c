"""What every kind of training run has: a name, a schedule, and when it tells and saves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from trilobit.errors import RecipeError
from trilobit.train.recipes.plain import build, check_range, shown

Decay = Literal["linear", "cosine"]
Precision = Literal["float32", "bf16"]
Optimizer = Literal["adamw", "muon"]

_MOST_STEPS = 10**9
_LONGEST_NAME = 100  # it names a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Two stages, each from one learning rate to another, and weight decay for each.

    Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ" and the 2B4T report.
    batch_windows: windows of one step, over all processes.
    accumulate_steps: parts in which a process computes its windows, to save memory.
    stage_1, stage_2: learning rate at the start and at the end of each stage.
    stage_2_steps: the last steps; None: half of all.
    muon_rate: Muon's learning rate is this many times that of the stages.
    """

    steps: int
    batch_windows: int = 8
    accumulate_steps: int = 1
    warmup_steps: int = 100
    stage_1: tuple[float, float] = (1.5e-3, 1.0e-3)
    stage_2: tuple[float, float] = (6.0e-4, 0.0)
    stage_2_steps: int | None = None
    decay: Decay = "linear"
    weight_decay: float = 0.1
    stage_2_weight_decay: float = 0.0
    muon_rate: float = 20.0
    quantisation_warmup_steps: int = 0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_windows, self.accumulate_steps) < 1:
            raise RecipeError(
                "schedule.steps, batch_windows and accumulate_steps must be at least 1"
            )
        check_range("schedule.steps", self.steps, 1, _MOST_STEPS)
        check_range("schedule.batch_windows", self.batch_windows, 1, 1 << 20)
        if self.batch_windows % self.accumulate_steps:
            raise RecipeError(
                f"schedule.batch_windows {self.batch_windows} is not a multiple of "
                f"accumulate_steps {shown(self.accumulate_steps)}"
            )
        if min(self.warmup_steps, self.quantisation_warmup_steps) < 0:
            raise RecipeError("schedule.warmup_steps and quantisation_warmup_steps must be >= 0")
        check_range("schedule.warmup_steps", self.warmup_steps, 0, _MOST_STEPS)
        if self.quantisation_warmup_steps >= self.steps:
            raise RecipeError(
                f"schedule.quantisation_warmup_steps is {shown(self.quantisation_warmup_steps)}; "
                f"it must be less than the {self.steps} steps, or the model never trains as it "
                "will run"
            )
        for name, (start, end) in (("stage_1", self.stage_1), ("stage_2", self.stage_2)):
            if not (0 < start < float("inf") and 0 <= end < float("inf")):
                raise RecipeError(f"schedule.{name} is {start}, {end}; learning rates above 0")
        for name in ("weight_decay", "stage_2_weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise RecipeError(f"schedule.{name} is {value}; it must be 0 or more")
        if not 0 < self.muon_rate < float("inf"):
            raise RecipeError(f"schedule.muon_rate is {self.muon_rate}; it must be above 0")
        if self.stage_2_steps is not None:
            check_range("schedule.stage_2_steps", self.stage_2_steps, 0, _MOST_STEPS)

    @property
    def stage_1_steps(self) -> int:
        """Steps of the first stage; none where the second alone is longer than the run."""
        if self.stage_2_steps is None:
            return self.steps // 2
        return max(self.steps - self.stage_2_steps, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A run, whatever it learns; each kind adds its own keys.

    precision: of the products; "bf16" is for GPUs. Masters and roundings stay float32.
    optimizer: "muon" is Muon for the matrices, AdamW for the rest.
    compile: let torch.compile make one of the small operations of a layer. It takes half a minute
        of a core, and rounds otherwise than without.
    folder: where the recipe's file lies, for paths in it.
    """

    kind: ClassVar[str]

    name: str
    schedule: Schedule
    precision: Precision = "float32"
    optimizer: Optimizer = "adamw"
    compile: bool = False
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
            check_range(key, getattr(self, key), 1, _MOST_STEPS)

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
