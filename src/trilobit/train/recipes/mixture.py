"""What a text is mixed of: `[[data.mixture]]`, each part with its share of the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from trilobit.errors import RecipeError
from trilobit.train.recipes.base import check_names
from trilobit.train.recipes.plain import check_range, shown

_FINEST = 10_000  # of shares: one in so many windows
_MOST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """Files that have a share of the training tokens, however long they are: short ones repeat.

    weight: over the sum of all weights this is the share. stage_2_weight: the same in stage 2 of
    the schedule; None: as before. validation, source, column: as those of a text that is not mixed.
    """

    name: str
    files: tuple[str, ...]
    weight: float
    stage_2_weight: float | None = None
    validation: str | None = None
    source: str | None = None
    column: str = "text"


def check_mixture(mixture: Sequence[Ingredient]) -> None:
    """RecipeError for parts that cannot be mixed."""
    for part in mixture:
        if not part.name or not all(c.isalnum() or c in "-_." for c in part.name):
            raise RecipeError(
                f"data.mixture: name is {shown(part.name)}; letters, digits, '-', '_' and '.'"
            )
        where = f"data.mixture: {part.name}"
        check_names(where, part.files, part.validation)
        for key, weight in zip(("weight", "stage_2_weight"), _weights(part), strict=True):
            check_range(f"{where}.{key}", weight, 0, _MOST_WEIGHT)
        if not any(_weights(part)):
            raise RecipeError(f"{where}: has no weight in any stage; leave it out")
    names = [part.name for part in mixture]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"data.mixture: the name {twice[0]} is given twice")
    shares(mixture)


def check_keys_of_records(text: Ingredient) -> None:
    """RecipeError for a key of records where files are plain text, which has none."""
    where = f"data.mixture: {text.name}" if text.name else "data"
    plain = [name for name in text.files if _is_plain(name)]
    if text.source is not None and plain:
        raise RecipeError(
            f"{where}.source is {shown(text.source)}, and {shown(plain[0])} is plain text, without "
            "records to choose from; leave one of them out"
        )
    others = [*text.files, *([text.validation] if text.validation is not None else [])]
    if text.column != "text" and all(map(_is_plain, others)):
        raise RecipeError(
            f"{where}.column is {shown(text.column)}, and {shown(plain[0])} is plain text, without "
            "columns; leave it out"
        )


def shares(mixture: Sequence[Ingredient]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each stage the parts' shares, as the smallest whole numbers that stand so to each other.

    Raises RecipeError for a stage without any, and for shares that would take too many.
    """
    first, second = (
        _whole(stage, f"stage {number}")
        for number, stage in enumerate(zip(*map(_weights, mixture), strict=True), 1)
    )
    return first, second


def _is_plain(name: str) -> bool:
    return name.endswith((".txt", ".txt.xz"))


def _weights(part: Ingredient) -> tuple[float, float]:
    second = part.weight if part.stage_2_weight is None else part.stage_2_weight
    return part.weight, second


def _whole(weights: Sequence[float], what: str) -> tuple[int, ...]:
    # Of what was written: 0.1 is a tenth.
    fractions = [Fraction(repr(weight)) for weight in weights]
    denominator = math.lcm(*(f.denominator for f in fractions))
    numbers = [int(f * denominator) for f in fractions]
    if not any(numbers):
        raise RecipeError(f"data.mixture: no part has a weight in {what}; give one some")
    divisor = math.gcd(*numbers)
    if sum(numbers) // divisor > _FINEST:
        raise RecipeError(
            f"data.mixture: the weights of {what} make shares finer than 1/{_FINEST}; round them "
            "to fewer digits"
        )
    return tuple(number // divisor for number in numbers)
