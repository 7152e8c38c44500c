"""The code of docs/python.md runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/python.md"


def test_convert_is_the_function_whatever_was_imported_before() -> None:
    program = (
        "import trilobit, trilobit.conversion, trilobit.cli.convert\n"
        "from trilobit import convert\n"
        "assert convert is trilobit.conversion.convert, convert\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_the_code_of_the_page_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(code) == 4
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout
