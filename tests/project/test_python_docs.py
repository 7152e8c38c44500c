"""The Python code of the pages runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_convert_is_the_function_whatever_was_imported_before() -> None:
    program = (
        "import trilobit, trilobit.conversion, trilobit.cli.convert\n"
        "from trilobit import convert\n"
        "assert convert is trilobit.conversion.convert, convert\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.parametrize(
    ("page", "blocks"), [("python.md", 4), ("evaluation.md", 1), ("start.md", 1), ("ar.md", 1)]
)
def test_the_code_of_a_page_runs(page: str, blocks: int) -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert len(code) == blocks
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout
