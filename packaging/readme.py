"""The README as a package index shows it: links into the sources lead to where those are.

A metadata provider of scikit-build-core. In README.md links stay relative, so that they work in a
checkout, on a branch and in a source archive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)]+)\)")


def dynamic_metadata(
    field: str, settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, str]:
    """The field `readme` of the project table."""
    source = project["urls"]["Source"]

    def absolute(match: re.Match[str]) -> str:
        image, text, path = match.groups()
        kind = "raw" if image else "blob"
        return f"{image}[{text}]({source}/{kind}/main/{path})"

    text = _RELATIVE.sub(absolute, Path("README.md").read_text(encoding="utf-8"))
    return {"text": text, "content-type": "text/markdown"}
