"""What the bundled model of Arabic is trained on: passages of novels, in one spelling."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scripts import module_of

FOLDER = Path(__file__).parents[2] / "models" / "trilobit-arabic-7m"
SENTENCE = "وكان في قديم الزمان رجل من أهل المدينة رقم {} يسكن دارا على شاطئ النهر مع ابنته."

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="tests of an installed package")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script, as a module."""
    with module_of(FOLDER, "passages") as module:
        yield module


def novel(number: int, paragraphs: int = 9) -> str:
    words = ("أولى", "ثانية", "ثالثة", "رابعة", "خامسة", "سادسة", "سابعة", "ثامنة", "تاسعة")
    return "\n".join(
        " ".join(SENTENCE.format(f"{number} {word}") for _ in range(4))
        for word in words[:paragraphs]
    )


def written(script: Any, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = folder / "novels.txt.xz"
    file.write_bytes(lzma.compress(text.encode()))
    monkeypatch.setattr(sys, "argv", ["passages.py", str(folder / "out"), str(file)])
    script.main()
    return folder / "out"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_last_two_novels_are_held_out_whole_and_no_other(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{novel(number)}\n<|endoftext|>\n" for number in range(5))
    out = written(script, tmp_path, text, monkeypatch)
    trained, held_out = lines(out / "train.jsonl"), lines(out / "held_out.jsonl")
    assert {line["novel"] for line in trained} == {0, 1, 2}
    assert {line["novel"] for line in held_out} == {3, 4}
    for line in trained + held_out:
        assert f"رقم {line['novel']} " in line["text"]
    for number in range(5):
        own = [line["text"] for line in trained + held_out if line["novel"] == number]
        assert "\n".join(own) == novel(number)


def test_two_novels_are_too_few(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"novels\.txt\.xz: has 2 novels .* give more"):
        written(script, tmp_path, f"{novel(0)}<|endoftext|>{novel(1)}<|endoftext|>", monkeypatch)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spelled", "one"),
    [
        ("كَانَ الرَّجُلُ", "كان الرجل"),  # vowels
        ("الســـلام", "السلام"),  # an elongated line
        ("ﻛﺎﻥ ﻻ", "كان لا"),  # letters as they stand in a word
        ("\ufeffقال\u200f: نعم", "قال: نعم"),  # marks that nobody sees
        ("قال ، ثم  سكت .", "قال، ثم سكت."),  # blanks
        ("إلهٰنا", "إلهنا"),
    ],
)
def test_a_word_has_one_spelling(script: Any, spelled: str, one: str) -> None:
    assert list(script.paragraphs(spelled)) == [one]


def test_a_note_number_or_a_blessing_on_its_own_line_parts_no_sentence(script: Any) -> None:
    assert list(script.paragraphs("نزل عند صديقه\n١٢\nفي المدينة.\nثم سافر.")) == [
        "نزل عند صديقه في المدينة.",
        "ثم سافر.",
    ]
    assert list(script.paragraphs("قال النبي\nﷺ\nفي حديثه.")) == ["قال النبي ﷺ في حديثه."]


def test_passages_are_all_paragraphs_in_order_and_no_longer_than_the_limit(script: Any) -> None:
    prose = [SENTENCE.format(number) * (1 + number % 5) for number in range(60)]
    found = list(script.passages(prose))
    assert "\n".join(found) == "\n".join(prose)
    sizes = [sum(map(len, text.split("\n"))) for text in found]
    assert max(sizes) <= script.LONGEST
    assert all(sum(pair) > script.LONGEST for pair in pairwise(sizes))


def test_a_long_paragraph_is_cut_behind_sentences_and_a_long_sentence_is_not(script: Any) -> None:
    long = " ".join(SENTENCE.format(number) for number in range(60))
    parts = list(script.cut(long))
    assert len(parts) > 2
    assert " ".join(parts) == long
    assert all(part.endswith(".") and len(part) <= script.LONGEST for part in parts)
    endless = SENTENCE.format(0).rstrip(".") * 40
    assert list(script.cut(f"{endless}. نعم.")) == [f"{endless}.", "نعم."]


def test_what_is_left_out_is_counted(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ("* * *", "صفحة <br> أولى")
    novels = ("\n".join((*odd, novel(0))), novel(1), "عنوان قصير.")
    text = "".join(f"{one}<|endoftext|>" for one in novels)
    out = written(script, tmp_path, text, monkeypatch)
    told = capsys.readouterr().err.splitlines()
    kept = sum(len(line["text"]) for line in lines(out / "train.jsonl"))
    assert told[0].startswith(f"train.jsonl: {len(lines(out / 'train.jsonl'))} passages, {kept:,} ")
    assert (
        f"left out: 2 paragraphs without letters or with Latin ones ({sum(map(len, odd))} "
        in told[0]
    )
    assert told[0].endswith("0 passages below 200 characters (0)")
    assert told[1].endswith("1 passages below 200 characters (11)")
