"""What novels tell of Arabic words without a tagger: which there are, and of which gender.

Where nearly all of a text agrees, a word's gender shows by what stands beside it: a noun's by
"this" and "that", a subject's by its verb, an adjective's forms by the nouns before them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

# A gender is a bool: True is feminine.
DEMONSTRATIVES = {"هذا": False, "ذلك": False, "هذه": True, "تلك": True}
SAID = "قال كان أجاب صاح سأل دخل خرج عاد جلس وقف نظر سمع جاء ذهب وصل قام أخذ ظهر أراد عرف شعر أحس"
VERBS = dict.fromkeys(SAID.split(), False) | {f"{verb}ت": True for verb in SAID.split()}


@dataclass(frozen=True, slots=True)
class Language:
    """What is known of words."""

    words: frozenset[str]
    nouns: dict[str, bool]  # with the article
    subjects: dict[str, bool]  # of verbs before them
    adjectives: frozenset[str]  # with the article, masculine
    plurals: frozenset[str]  # with the article, without their ending

    def gender(self, noun: str) -> bool | None:
        """Of a noun with the article; None where nobody knows."""
        return self.nouns.get(noun, True if is_definite(noun) and noun[-1] == "ة" else None)


def is_definite(word: str) -> bool:
    return word.startswith("ال") and len(word) > 4


def runs(text: str) -> Iterator[list[str]]:
    """Words with nothing but a space between them."""
    return (run.split() for run in re.split("[^ء-غف-ي ]+", text))


def pairs(text: str) -> Iterator[tuple[str, str]]:
    for run in runs(text):
        yield from pairwise(run)


def alone(word: str, known: dict[str, bool] | frozenset[str]) -> str:
    """A word without an "and" that is written together with it."""
    return word[1:] if word not in known and word[:1] in "وف" else word


def certain(seen: Counter[tuple[str, bool]], least: int, share: float) -> dict[str, bool]:
    """Words that were seen so often, nearly always in one gender."""
    known = {}
    for word in {word for word, _ in seen}:
        feminine, all_ = seen[word, True], seen[word, True] + seen[word, False]
        if all_ >= least and max(feminine, all_ - feminine) >= share * all_:
            known[word] = 2 * feminine > all_
    return known


def learn(texts: Iterable[str]) -> Language:
    """What text that agrees tells of its words."""
    words: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for text in texts:
        for run in runs(text):
            words.update(run)
            together.update(pairwise(run))
    nouns: Counter[tuple[str, bool]] = Counter()
    subjects: Counter[tuple[str, bool]] = Counter()
    verbs_before: Counter[str] = Counter()
    telling = DEMONSTRATIVES | VERBS
    for (first, second), count in together.items():
        first = alone(first, telling)
        if first in DEMONSTRATIVES and is_definite(second):
            nouns[second, DEMONSTRATIVES[first]] += count
        elif first in VERBS:
            subjects[second, VERBS[first]] += count
            verbs_before[second] += 1
    known = Language(
        frozenset(words),
        certain(nouns, 4, 0.95),
        {
            word: feminine
            for word, feminine in certain(subjects, 12, 0.97).items()
            if verbs_before[word] > 5
        },
        frozenset(),
        frozenset(
            word[:-2]
            for word, count in words.items()
            if is_definite(word)
            and word[-2:] == "ون"
            and min(count, words[word[:-2]], words[f"{word[:-2]}ين"]) > 4
        ),
    )
    adjectives: Counter[tuple[str, bool, bool]] = Counter()
    for (first, second), count in together.items():
        if is_definite(second) and (feminine := known.gender(first)) is not None:
            adjectives[second.removesuffix("ة"), feminine, second[-1] == "ة"] += count
    return Language(
        known.words,
        known.nouns,
        known.subjects,
        frozenset(
            word
            for word in {word for word, _, _ in adjectives}
            if min(right := [adjectives[word, one, one] for one in (False, True)]) > 4
            and sum(adjectives[word, one, not one] for one in (False, True)) < 0.1 * sum(right)
        ),
        known.plurals,
    )
