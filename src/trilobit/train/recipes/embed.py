"""Learn vectors that tell which texts are alike, from a model of text: `kind = "embed"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trilobit.errors import RecipeError
from trilobit.train.recipes.plain import check_range
from trilobit.train.recipes.sft import Sft


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Sft):
    """Contrastive training of the model `start`: a text's vector is its last token's state.

    data.files: .jsonl, plain or .xz, two texts a line that are alike: `anchor` and `positive`, as
        sentence-transformers calls them.
    data.window: the most tokens of a text; pairs with a longer one are left out.
    temperature: the cosines of vectors are divided by it.
    """

    kind: ClassVar[str] = "embed"
    shards: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    temperature: float = 0.05

    def __post_init__(self) -> None:
        Sft.__post_init__(self)
        check_range("temperature", self.temperature, 1e-4, 100)
        if self.schedule.batch_windows < 2 * self.schedule.accumulate_steps:
            raise RecipeError(
                "schedule.batch_windows must be at least 2 in each of accumulate_steps parts: a "
                "pair is told from the others beside it"
            )
