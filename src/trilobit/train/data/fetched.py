"""A recipe whose text lies on the Hub -> the same with files of this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from trilobit.errors import RecipeError
from trilobit.hub.texts import is_of_hub, text_files
from trilobit.train.data.tables import PARQUET
from trilobit.train.recipes import Data, Ingredient, Recipe
from trilobit.train.recipes.base import Files

_KINDS = tuple(kind + packed for kind in (".jsonl", ".txt") for packed in ("", ".xz"))

_Named = TypeVar("_Named", Files, Data, Ingredient)
_AnyRecipe = TypeVar("_AnyRecipe", bound=Recipe)


def with_files_here(recipe: _AnyRecipe) -> _AnyRecipe:
    """The recipe; every name of the Hub in it replaced by files, which are fetched.

    Raises what `text_files` does, and RecipeError for a validation of several files.
    """
    if not recipe.is_of_hub:
        return recipe
    data = _here(recipe.data)
    if isinstance(data, Data):
        data = replace(data, mixture=tuple(_here(part) for part in data.mixture))
    return replace(recipe, data=data)


def _here(named: _Named) -> _Named:
    validation = named.validation
    if validation is not None:
        found = _files(validation)
        if len(found) > 1:
            raise RecipeError(
                f"{validation}: stands for {len(found)} files, and validation is one; name it: "
                f"{', '.join(found[:3])}"
            )
        validation = found[0]
    files = tuple(file for name in named.files for file in _files(name))
    return replace(named, files=files, validation=validation)


def _files(name: str) -> list[str]:
    if not is_of_hub(name):
        return [name]
    return [str(path) for path in text_files(name, (PARQUET, *_KINDS))]
