"""The models that come with the package: each has its card, and writes what it was made for."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from program import result, trilobit

from trilobit import LLM, SamplingParams
from trilobit.bundled import ARABIC, BEGINNINGS, CHAT, DEFAULT, bundled_models
from trilobit.formats.packed.checksums import damaged_parts
from trilobit.formats.packed.reader import PackedModel

MODELS = Path(__file__).parents[2] / "models"

pytestmark = pytest.mark.skipif(not MODELS.exists(), reason="tests of an installed package")


def test_every_bundled_model_has_its_card_its_recipe_and_the_log_of_its_training() -> None:
    assert set(bundled_models()) == {DEFAULT, CHAT, ARABIC}
    folders = {path.parent.name for path in MODELS.glob("*/recipe.toml")}
    assert folders == set(bundled_models())
    for name, path in bundled_models().items():
        files = {file.name for file in (MODELS / name).iterdir()}
        assert {"README.md", "recipe.toml", "log.jsonl"} <= files, name
        assert (MODELS / name / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
        assert damaged_parts(PackedModel(path).file) == []


def is_arabic(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and all(unicodedata.bidirectional(one) == "AL" for one in letters)


def test_arabic_is_streamed_in_whole_letters_and_is_nothing_else() -> None:
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, ignore_eos=True)
    with LLM(ARABIC, threads=1) as llm:
        pieces = list(llm.stream("كان", params))
        assert "".join(pieces) == llm.generate("كان", params).text
    assert len(pieces) > 30
    assert "\ufffd" not in "".join(pieces)
    assert is_arabic("".join(pieces))


def test_run_gives_the_arabic_model_a_beginning_of_its_own() -> None:
    done = trilobit("run", ARABIC, "--max-tokens", 20, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(BEGINNINGS[ARABIC])
    assert len(done.stdout) > len(BEGINNINGS[ARABIC]) + 20
    assert is_arabic(done.stdout)


def test_lists_tell_the_language_of_each() -> None:
    languages = {model["name"]: model["languages"] for model in result("list", "--names")}
    assert languages[ARABIC] == "Arabic"
    assert languages[DEFAULT] == languages[CHAT] == "English"
