"""What a training run is: one frozen recipe, read from a TOML or YAML file.

A recipe is complete. Two runs of the same recipe and data, on the same machine, give the
same model; the file is written next to the checkpoints so that a resumed run can tell
whether it is still the same run. Its `kind` says what it learns, and so which keys it has.
"""

from __future__ import annotations

from pathlib import Path

from trilobit.errors import RecipeError
from trilobit.train.recipes.base import Lora, Recipe
from trilobit.train.recipes.distill import Distill
from trilobit.train.recipes.dpo import Dpo
from trilobit.train.recipes.embed import Embed
from trilobit.train.recipes.mixture import Ingredient
from trilobit.train.recipes.plain import has_key, read_values, shown
from trilobit.train.recipes.pretrain import Data, Pretrain, Shape
from trilobit.train.recipes.schedule import Schedule
from trilobit.train.recipes.sft import Sft

__all__ = [
    "KINDS",
    "Data",
    "Distill",
    "Dpo",
    "Embed",
    "Ingredient",
    "Lora",
    "Pretrain",
    "Recipe",
    "Schedule",
    "Sft",
    "Shape",
    "load_recipe",
    "recipe_of",
]

KINDS: dict[str, type[Recipe]] = {
    recipe.kind: recipe for recipe in (Pretrain, Sft, Dpo, Embed, Distill)
}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a .toml, .yaml or .yml file.

    Raises RecipeError when the file is missing, does not parse, or holds a key or a value
    that is not understood.
    """
    try:
        return recipe_of(read_values(path), path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def recipe_of(values: object, folder: Path = Path()) -> Recipe:
    """The recipe of plain values. Inverse of `as_dict`; without a kind it is one of pretrain.

    Raises RecipeError for a kind, a key or a value that is not understood.
    """
    if not isinstance(values, dict):
        raise RecipeError("holds no keys; see docs/train.md for a recipe")
    values = dict(values)
    said = values.pop("kind", None)
    kind = Pretrain.kind if said is None else said
    if not isinstance(kind, str) or kind not in KINDS:
        raise RecipeError(f"kind is {shown(kind)}; one of {', '.join(KINDS)}")
    for key in values:
        if not has_key(KINDS[kind], key) and (having := _kinds_with(key)):
            meant = f"of kind '{kind}'" if said else f"without a kind, taken for one of '{kind}'"
            raise RecipeError(f"unknown key '{key}' in a recipe {meant}; {having} has it")
    return KINDS[kind].from_dict(values, folder)


def _kinds_with(key: object) -> str:
    """The kinds whose recipes have a key, as recipes say them."""
    return " or ".join(f'kind = "{kind}"' for kind in KINDS if has_key(KINDS[kind], key))
