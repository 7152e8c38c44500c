"""The tree of src/trilobit, one line a file, from the first sentence of each: for architecture.md.

`python docs/tree.py` writes it there; a test compares.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: made by docs/tree.py -->\n```\n", "```\n<!-- end of tree -->\n"
_WIDTH = 100
_NAMES = 24  # columns


def tree() -> str:
    """A line for every folder and file, sorted, folders behind the files beside them."""
    return "".join(f"{line}\n" for line in _lines(ROOT / "src" / "trilobit", 0))


def _lines(folder: Path, depth: int) -> list[str]:
    indent = "  " * depth
    lines = [_line(f"{indent}{folder.name}/", folder / "__init__.py")]
    for file in sorted(folder.glob("*.py")):
        if file.name != "__init__.py":
            lines.append(_line(f"{indent}  {file.stem}", file))
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").exists()):
        lines += _lines(inner, depth + 1)
    return lines


def _line(name: str, file: Path) -> str:
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    words = " ".join(said.split("\n\n")[0].split())
    room = _WIDTH - _NAMES
    if len(words) > room:
        words = words[: room - 3].rsplit(" ", 1)[0].rstrip(",;:") + " …"
    return f"{name:<{_NAMES}}{words}".rstrip()


def page(text: str) -> str:
    """The page with the tree as it is now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tree() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
