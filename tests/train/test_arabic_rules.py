"""What the rules say that a speaker has for text of the bundled model of Arabic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import module_of

FOLDER = Path(__file__).parents[2] / "models" / "trilobit-arabic-7m"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="tests of an installed package")

# Each of these stands in the text that is learned as often as makes a speaker sure.
LEARNED = """
هذا البيت الكبير. هذه المدينة الكبيرة. تلك الشمس الكبيرة. ذلك القصر الكبير. هذا الخليفة الكبير.
قال سليم. دخل سليم. خرج سليم. وقف سليم. عاد سليم. فجلس سليم.
قالت سلمى. دخلت سلمى. خرجت سلمى. وقفت سلمى. عادت سلمى. وجلست سلمى.
جاء المسلمون. رأيت المسلمين. هذا المسلم. دخل السجون. رأيت السجين.
"""


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script, as a module."""
    with module_of(FOLDER, "rules") as module:
        yield module


@pytest.fixture(scope="module")
def language(script: Any) -> Any:
    return script.learn([LEARNED] * 5)


CASES = [
    ("demonstratives", "وهذه المدينة", True),
    ("demonstratives", "هذا المدينة", False),
    ("demonstratives", "تلك الشمس", True),  # feminine without the ending
    ("demonstratives", "ذلك الشمس", False),
    ("demonstratives", "هذا الخليفة", True),  # a man with the ending
    ("demonstratives", "هذه السفينة", True),  # never seen, but it has the ending
    ("demonstratives", "هذا القطار", None),
    ("demonstratives", "هذه، المدينة", None),
    ("relatives", "الشمس التي", True),
    ("relatives", "الشمس الذي", False),
    ("relatives", "بيت الذي", None),
    ("adjectives", "القصر الكبير", True),
    ("adjectives", "الشمس الكبير", False),
    ("adjectives", "البيت الكبيرة", False),
    ("adjectives", "البيت كبيرة", None),
    ("verbs", "فقالت سلمى", True),
    ("verbs", "فقال سلمى", False),
    ("verbs", "وخرجت سليم", False),
    ("verbs", "قالت: سليم", None),
    ("pluperfects", "وكانت قد دخلت", True),
    ("pluperfects", "وكانت قد دخل", False),
    ("pluperfects", "كان قد دخلت", False),
    ("pluperfects", "كان قد دخله", None),
    ("pluperfects", "كان يدخل", None),
    ("cases", "إلى المسلمين", True),
    ("cases", "وفي المسلمون", False),
    ("cases", "جاء المسلمون", None),
    ("cases", "إلى السجون", None),  # prisons, and no prisoners
    ("presents", "ولم يكن", True),
    ("presents", "لم آت", True),
    ("presents", "لم يكون", False),
    ("presents", "لن يكون", True),
    ("presents", "سوف ذهب", False),
    ("unknown_words", "سلمى", True),
    ("unknown_words", "سلمون", False),
    ("impossible_words", "مدينة", True),
    ("impossible_words", "مدينةها", False),
    ("impossible_words", "ئلى", False),
    ("quotes", "قال: «نعم»", True),
    ("quotes", "قال: «نعم «لا»", False),
    ("quotes", "قال: «نعم", None),  # cut off here
    ("repetitions", "كان يا ما كان", True),
    ("repetitions", "خرج من البيت الكبير ثم خرج من البيت الكبير", False),
]


@pytest.mark.parametrize(("rule", "text", "right"), CASES)
def test_a_rule_knows_right_from_wrong(
    script: Any, language: Any, rule: str, text: str, right: bool | None
) -> None:
    """None: it has nothing to say."""
    found = [one for _, one in getattr(script, rule)(text, language)]
    assert (all(found) if found else None) is right, found


def test_every_rule_is_among_those_told_and_finds_nothing_in_text_that_agrees(
    script: Any, language: Any
) -> None:
    tried = {getattr(script, rule) for rule, _, _ in CASES}
    assert tried == set(script.RULES.values())
    found = script.told([LEARNED], language)
    assert {name for name in found if not all(right for _, right in found[name])} == set()
    assert len(found["this, that and their noun"]) == 6
    assert found["verb and subject"][0] == ("قال سليم", True)
