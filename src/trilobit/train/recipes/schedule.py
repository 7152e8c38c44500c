"""How long a run is, and how fast it learns when: `[schedule]` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trilobit.errors import RecipeError
from trilobit.train.recipes.plain import check_range, shown

Decay = Literal["linear", "cosine"]

MOST_STEPS = 10**9
_WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Two stages, each from one learning rate to another, and weight decay for each.

    Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ" and the 2B4T report.
    batch_windows: windows of one step, over all processes.
    accumulate_steps: parts in which a process computes its windows, to save memory.
    warmup_steps: the learning rate rises over these; None: see `rising_steps`.
    stage_1, stage_2: learning rate at the start and at the end of each stage.
    stage_2_steps: the last steps; None: half of all.
    muon_rate: Muon's learning rate is this many times that of the stages.
    low_bit_steps: the last steps, whose activations are what the recipe says; those before are
        int8. None: a twentieth, as BitNet a4.8 and v2 were trained.
    """

    steps: int
    batch_windows: int = 8
    accumulate_steps: int = 1
    warmup_steps: int | None = None
    stage_1: tuple[float, float] = (1.5e-3, 1.0e-3)
    stage_2: tuple[float, float] = (6.0e-4, 0.0)
    stage_2_steps: int | None = None
    decay: Decay = "linear"
    weight_decay: float = 0.1
    stage_2_weight_decay: float = 0.0
    muon_rate: float = 20.0
    quantisation_warmup_steps: int = 0
    low_bit_steps: int | None = None
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_windows, self.accumulate_steps) < 1:
            raise RecipeError(
                "schedule.steps, batch_windows and accumulate_steps must be at least 1"
            )
        check_range("schedule.steps", self.steps, 1, MOST_STEPS)
        check_range("schedule.batch_windows", self.batch_windows, 1, 1 << 20)
        if self.batch_windows % self.accumulate_steps:
            raise RecipeError(
                f"schedule.batch_windows {self.batch_windows} is not a multiple of "
                f"accumulate_steps {shown(self.accumulate_steps)}"
            )
        if min(self.warmup_steps or 0, self.quantisation_warmup_steps) < 0:
            raise RecipeError("schedule.warmup_steps and quantisation_warmup_steps must be >= 0")
        check_range("schedule.warmup_steps", self.warmup_steps or 0, 0, MOST_STEPS)
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
            check_range("schedule.stage_2_steps", self.stage_2_steps, 0, MOST_STEPS)
        if self.low_bit_steps is not None:
            check_range("schedule.low_bit_steps", self.low_bit_steps, 1, MOST_STEPS)

    @property
    def rising_steps(self) -> int:
        """Steps over which the learning rate rises: a hundred, where none are said."""
        return _WARMUP_STEPS if self.warmup_steps is None else self.warmup_steps

    @property
    def stage_1_steps(self) -> int:
        """Steps of the first stage; none where the second alone is longer than the run."""
        if self.stage_2_steps is None:
            return self.steps // 2
        return max(self.steps - self.stage_2_steps, 0)

    @property
    def int8_steps(self) -> int:
        """Steps before those of low bits."""
        low = self.low_bit_steps or -(-self.steps // 20)
        return max(self.steps - low, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BriefSchedule(Schedule):
    """Of a run that goes on from a trained model, and is often shorter than a usual warm-up."""

    @property
    def rising_steps(self) -> int:
        """A tenth of the run at most, where none are said."""
        if self.warmup_steps is None:
            return min(_WARMUP_STEPS, self.steps // 10)
        return self.warmup_steps
