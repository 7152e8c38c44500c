"""docs/architecture.md has the tree as it is, and names no file that is not there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"


def test_the_tree_is_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("tree", ROOT / "docs" / "tree.py")
    assert spec is not None
    assert spec.loader is not None
    tree = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tree)
    text = PAGE.read_text(encoding="utf-8")
    assert tree.page(text) == text, "run `python docs/tree.py`"


def test_files_that_docs_name_are_there() -> None:
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        if page.name == "log.md":  # tells of what was
            continue
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|cpp|h|inl))`", page.read_text()):
            places = (ROOT / name, ROOT / "src" / "trilobit" / name, ROOT / "native" / name)
            assert any(place.exists() for place in places), f"{page.name}: {name}"
