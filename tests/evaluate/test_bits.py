"""The script that measures the bundled models on held-out text."""

from __future__ import annotations

import json
import lzma
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import module_of

from trilobit import LLM

MODELS = Path(__file__).parents[2] / "models"

pytestmark = pytest.mark.skipif(not MODELS.exists(), reason="tests of an installed package")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script, as a module."""
    with module_of(MODELS, "bits") as module:
        yield module


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bits") / "verses.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as lines:
        for number in range(6):
            record = {"source": "odd" if number % 2 else "even", "text": f" text {number}\n"}
            lines.write(json.dumps({**record, "ar": "ٱلۡكِتَٰبُ إِلَّا"}) + "\n")
    return path


def test_lines_are_chosen_by_number_source_and_column(script: Any, file: Path) -> None:
    def texts(held_out: int, source: str | None, column: str, *, bare: bool = False) -> list[str]:
        return list(script.texts(file, held_out, source, column, bare=bare))

    assert texts(1, None, "text") == [f"text {number}" for number in range(6)]
    assert texts(3, None, "text") == ["text 0", "text 3"]
    assert texts(3, "odd", "text") == ["text 3"]
    assert set(texts(1, None, "ar")) == {"ٱلۡكِتَٰبُ إِلَّا"}
    assert set(texts(1, None, "ar", bare=True)) == {"الكتب إلا"}


def test_bits_are_those_of_all_tokens_and_of_the_end_in_windows_that_overlap(script: Any) -> None:
    with LLM(threads=1, context=64) as llm:
        text = "One day, a little dog went to the park."
        ids = [*llm.encode(text), llm.config.eos_token_ids[0]]
        whole = -float(llm.score(ids).logprobs.sum()) / math.log(2)
        assert script.bits(llm, text) == pytest.approx(whole, rel=1e-6)
        long = f"{text} " * 12
        ids = [*llm.encode(long), llm.config.eos_token_ids[0]]
        assert len(ids) > 100
        total = 0.0
        for place in range(1, len(ids)):
            start = max(0, (place - 32) // 32 * 32)  # of the window that counts this token
            score = llm.score(ids[start : place + 1]).logprobs
            total -= float(score[-1]) / math.log(2)
        assert script.bits(llm, long) == pytest.approx(total, rel=1e-6)


def test_both_rates_are_told(
    script: Any, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bits.py", "--held-out", "3", "--column", "ar", str(file)]
    monkeypatch.setattr(sys, "argv", asked)
    script.main()
    told = capsys.readouterr().out
    letters = 2 * len("ٱلۡكِتَٰبُ إِلَّا")
    size = 2 * len("ٱلۡكِتَٰبُ إِلَّا".encode())
    assert told.startswith("verses.jsonl.xz: ")
    assert told.endswith(f"(2 documents, {size} bytes, {letters} characters)\n")
    byte, character = float(told.split()[1]), float(told.split()[5])
    assert character == pytest.approx(byte * size / letters, rel=1e-3)
