"""Learn which of two replies is preferred, from a model that replies: `kind = "dpo"`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from trilobit.train.recipes.plain import check_range
from trilobit.train.recipes.sft import Sft


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo(Sft):
    """Direct preference optimisation of the model `start`, which is its own reference.

    data.files: .jsonl, plain or .xz, a preference a line: `chosen` and `rejected`, two lists of
        messages that end in two replies to the same messages, or `prompt` and the two replies.
    beta: how dearly it leaves the reference.
    """

    kind: ClassVar[str] = "dpo"
    shards: ClassVar[bool] = False

    beta: float = 0.1

    def __post_init__(self) -> None:
        Sft.__post_init__(self)
        check_range("beta", self.beta, 1e-6, 1e6)
