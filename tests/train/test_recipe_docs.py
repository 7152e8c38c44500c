"""The recipes that the documentation shows are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trilobit import RecipeError
from trilobit.train.recipes import load_recipe

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    )
    if "[schedule]" in block
]


@pytest.mark.parametrize("block", SHOWN)
def test_recipe_of_a_page_is_accepted(block: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(block, encoding="utf-8")
    assert load_recipe(recipe).name in block
    recipe.write_text(block + "no_such_key = 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="no_such_key"):
        load_recipe(recipe)


def test_pages_show_recipes() -> None:
    assert len(SHOWN) >= 3
