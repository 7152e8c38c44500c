"""Learn to reply in conversations, from a model that continues text: `kind = "sft"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trilobit.errors import RecipeError
from trilobit.train.recipes.base import Recipe
from trilobit.train.recipes.schedule import BriefSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Sft(Recipe):
    """Supervised fine-tuning: the assistant's replies of conversations, from the model `start`.

    data.files: .jsonl, plain or .xz, a conversation a line: `messages` of `role` and `content`.
    data.window: the most tokens of a conversation up to the end of a reply; what is longer is
        left out. At most the model's context.
    """

    kind: ClassVar[str] = "sft"

    schedule: BriefSchedule

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        if self.start is None:
            raise RecipeError("key 'start' is missing; give the folder of the model that learns")
