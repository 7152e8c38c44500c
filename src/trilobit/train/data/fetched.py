"""A recipe whose text lies on the Hub -> the same with files of this machine.

A run keeps the commits that it was begun with, so that its text stays what it is whatever becomes
of the names, and is taken from here where it is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import read_json
from trilobit.formats.whole_file import write_whole
from trilobit.hub.texts import is_of_hub, text_files
from trilobit.train.data.tables import PARQUET
from trilobit.train.recipes import Data, Ingredient, Recipe
from trilobit.train.recipes.base import Files

_KINDS = tuple(kind + packed for kind in (".jsonl", ".txt") for packed in ("", ".xz"))
_COMMITS = "hub.json"  # in a run's folder: what its recipe's names of the Hub stood for
_COMMIT = re.compile("[0-9a-f]{40}")

_Named = TypeVar("_Named", Files, Data, Ingredient)
_AnyRecipe = TypeVar("_AnyRecipe", bound=Recipe)


def with_files_here(
    recipe: _AnyRecipe, commits: Mapping[str, str]
) -> tuple[_AnyRecipe, dict[str, str]]:
    """The recipe, every name of the Hub in it replaced by files, which are fetched; their commits.

    commits: of names, where they are settled.
    Raises what `text_files` does, and RecipeError for a validation of several files.
    """
    names = (*recipe.data.trained_on, *recipe.data.validations)
    found = {
        name: text_files(name, (PARQUET, *_KINDS), commits.get(name))
        for name in dict.fromkeys(names)
        if is_of_hub(name)
    }
    if not found:
        return recipe, {}
    files = {name: tuple(map(str, texts.files)) for name, texts in found.items()}
    data = _here(recipe.data, files)
    if isinstance(data, Data):
        data = replace(data, mixture=tuple(_here(part, files) for part in data.mixture))
    return replace(recipe, data=data), {name: texts.commit for name, texts in found.items()}


def kept_commits(output: Path) -> dict[str, str]:
    """The commits that a run was begun with; none where it does not say (readably)."""
    try:
        kept = read_json(output / _COMMITS)
    except FormatError:
        return {}
    return {n: c for n, c in kept.items() if isinstance(c, str) and _COMMIT.fullmatch(c)}


def keep_commits(output: Path, commits: Mapping[str, str]) -> None:
    """Note them in a run's folder; OutputError when that cannot be written."""
    if commits:
        data = json.dumps(commits, indent=2) + "\n"
        write_whole(output / _COMMITS, data.encode(), "choose another --output")


def _here(named: _Named, files: Mapping[str, tuple[str, ...]]) -> _Named:
    validation = named.validation
    if validation is not None and validation in files:
        found = files[validation]
        if len(found) > 1:
            raise RecipeError(
                f"{validation}: stands for {len(found)} files, and validation is one; name it: "
                f"{', '.join(found[:3])}"
            )
        validation = found[0]
    here = tuple(file for name in named.files for file in files.get(name, (name,)))
    return replace(named, files=here, validation=validation)
