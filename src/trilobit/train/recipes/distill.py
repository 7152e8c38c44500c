"""Continue text as a float model does: `kind = "distill"`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trilobit.errors import RecipeError
from trilobit.train.recipes.base import check_path
from trilobit.train.recipes.pretrain import Pretrain


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill(Pretrain):
    """Training whose loss is the text's and a teacher's, token by token.

    teacher: directory of a Hugging Face checkpoint with float weights or masters, relative to the
        recipe's folder; its tokenizer is the run's. Without `model` and `start` the student is the
        teacher itself, made ternary.
    teacher_share: of the loss: the rest is the text's.
    temperature: logits of both are divided by it; the teacher's loss is multiplied by its square.
    sub_norms: begin every linear layer of a student that has a start with a norm, as long as its
        architecture has none there.
    """

    kind: ClassVar[str] = "distill"
    adapts: ClassVar[bool] = False

    teacher: str
    teacher_share: float = 0.5
    temperature: float = 1.0
    sub_norms: bool = True

    def __post_init__(self) -> None:
        check_path("teacher", self.teacher)
        if self.model is None and self.start is None:
            object.__setattr__(self, "start", self.teacher)
        Pretrain.__post_init__(self)
        if not 0 < self.teacher_share <= 1:
            raise RecipeError(
                f"teacher_share is {self.teacher_share}; it must be above 0 and at most 1"
            )
        for key, value in (
            ("z_loss", self.z_loss),
            ("dropout", self.dropout),
            ("data.replace_tokens", self.data.replace_tokens),
        ):
            if value:
                raise RecipeError(f"{key} has no place beside a teacher's loss; leave it out")
        if not 0 < self.temperature <= 100:
            raise RecipeError(f"temperature is {self.temperature}; it must be above 0, at most 100")

    def teacher_folder(self) -> Path:
        """The teacher."""
        return self.folder / self.teacher
