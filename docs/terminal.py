"""The picture of the terminal in the README: the program is run, and what it shows is drawn.

python docs/terminal.py docs/images/terminal.svg
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

SEED = 8
SHOWN = (
    ("pip install trilobit", None),
    ("trilobit run", ("run", "--seed", str(SEED), "--max-tokens", "120")),
    (
        'trilobit generate "A dog or a cat? A" --choice " dog" --choice " cat"',
        ("generate", "A dog or a cat? A", "--choice", " dog", "--choice", " cat"),
    ),
)
COLUMNS = 96


def main(out: Path) -> None:
    """Run what is shown and write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    for command, words in SHOWN:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        if words is None:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "trilobit", *words],
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        console.print(Text(done.stdout.strip()))
        if done.stderr.strip():
            console.print(Text(done.stderr.strip(), style="dim"))
    # Without the fonts that rich's picture would fetch from elsewhere.
    plain = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="trilobit", theme=MONOKAI, code_format=plain)
    out.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
