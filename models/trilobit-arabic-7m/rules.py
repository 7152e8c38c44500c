"""What a speaker's rules say of what a model writes, beside what people wrote: Markdown.

    python models/trilobit-arabic-7m/rules.py TRAIN HELD_OUT [MODEL] [--examples 3]

TRAIN and HELD_OUT are the files that passages.py writes. The model goes on from the first eight
words of every held-out passage, and is compared with how its author did, over as many words. Each
rule finds its opportunities in a text, and which of them break it. What a word is, and of which
gender, is learned from TRAIN (words.py), so a rule knows common words only; and it finds faults in
sound text too ("the door of the house that" need not be about the house): look at both columns.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from words import DEMONSTRATIVES, VERBS, Language, alone, learn, pairs, runs

from trilobit import LLM, Completion, SamplingParams

BEGINNING_WORDS = 8

WAS = {"كان": False, "كانت": True}
RELATIVES = {"الذي": False, "التي": True}
GENITIVE = frozenset("في من إلى على عن بين مع عند بعد قبل كل بعض جميع إن أن لكن كأن".split())
BEFORE_PRESENT = frozenset(["لم", "ألم", "لن", "سوف"])
PRESENT = "يتنأآ"
# Behind "lam" a long vowel before the last letter is lost.
LONG = re.compile("[يتنأ](?:كون|قول|قوم|عود|ستطيع|ريد|خاف|نام|زال|موت|عيش|صيب|جيب)")
IMPOSSIBLE = re.compile("[ةى][ء-ي]|^[ةىءؤئ]|(.)\\1\\1|^[^و]$")

Found = Iterator[tuple[str, bool]]  # an opportunity, and whether it is as it should be


def unknown_words(text: str, language: Language) -> Found:
    return ((word, word in language.words) for run in runs(text) for word in run)


def impossible_words(text: str, language: Language) -> Found:
    return ((word, not IMPOSSIBLE.search(word)) for run in runs(text) for word in run)


def demonstratives(text: str, language: Language) -> Found:
    for first, noun in pairs(text):
        this = DEMONSTRATIVES.get(alone(first, DEMONSTRATIVES))
        feminine = language.gender(noun)
        if None not in (this, feminine):
            yield f"{first} {noun}", this == feminine


def relatives(text: str, language: Language) -> Found:
    for noun, which in pairs(text):
        feminine = language.gender(noun)
        if which in RELATIVES and feminine is not None:
            yield f"{noun} {which}", RELATIVES[which] == feminine


def adjectives(text: str, language: Language) -> Found:
    for noun, word in pairs(text):
        feminine = language.gender(noun)
        if feminine is not None and word.removesuffix("ة") in language.adjectives:
            yield f"{noun} {word}", (word[-1] == "ة") == feminine


def verbs(text: str, language: Language) -> Found:
    for first, subject in pairs(text):
        verb = VERBS.get(alone(first, VERBS))
        if verb is not None and subject in language.subjects:
            yield f"{first} {subject}", verb == language.subjects[subject]


def pluperfects(text: str, language: Language) -> Found:
    """`kana qad` and a verb, whose feminine has a letter more."""
    for run in runs(text):
        for was, already, verb in zip(run, run[1:], run[2:], strict=False):
            had = WAS.get(alone(was, WAS))
            masculine = f"{verb}ت" in language.words
            if had is not None and already == "قد" and (masculine or verb[-1] == "ت"):
                yield f"{was} {already} {verb}", had != masculine


def cases(text: str, language: Language) -> Found:
    for first, plural in pairs(text):
        stem, ending = plural[:-2], plural[-2:]
        known = stem in language.plurals and ending in ("ون", "ين")
        if known and alone(first, GENITIVE) in GENITIVE:
            yield f"{first} {plural}", ending == "ين"


def presents(text: str, language: Language) -> Found:
    for first, verb in pairs(text):
        particle = alone(first, BEFORE_PRESENT)
        if particle in BEFORE_PRESENT:
            lost = particle in ("لم", "ألم") and LONG.fullmatch(verb)
            yield f"{first} {verb}", verb[0] in PRESENT and not lost


def quotes(text: str, language: Language) -> Found:
    marks = re.findall("[«»]", text)
    for mark, after in pairwise([*marks, "»" if marks and marks[-1] == "»" else ""]):
        if mark == "«" and after:  # the last one may be open where the text was cut
            yield mark + after, after == "»"


def repetitions(text: str, language: Language) -> Found:
    words = re.findall("[ء-غف-ي]+", text)
    seen = set()
    for phrase in zip(words, words[1:], words[2:], words[3:], strict=False):
        yield " ".join(phrase), phrase not in seen
        seen.add(phrase)


RULES: dict[str, Callable[[str, Language], Found]] = {
    "words that the novels have not": unknown_words,
    "words with impossible letters": impossible_words,
    "this, that and their noun": demonstratives,
    "noun and who, which": relatives,
    "noun and adjective": adjectives,
    "verb and subject": verbs,
    "the two verbs of had": pluperfects,
    "plural behind preposition or inna": cases,
    "verb behind lam, lan, sawfa": presents,
    "quotes that close": quotes,
    "four words said before": repetitions,
}


def told(texts: Iterable[str], language: Language) -> dict[str, list[tuple[str, bool]]]:
    """All opportunities of every rule."""
    found: dict[str, list[tuple[str, bool]]] = {name: [] for name in RULES}
    for text in texts:
        for name, rule in RULES.items():
            found[name] += rule(text, language)
    return found


def continued(llm: LLM, passages: list[str]) -> Iterator[tuple[str, str, Completion]]:
    """How a model goes on from the first words of passages, and how they do, equally long.

    Beside both, all that the model wrote.
    """
    split = [passage.split(" ") for passage in passages]
    beginnings = [" ".join(words[:BEGINNING_WORDS]) for words in split]
    params = [
        SamplingParams(max_tokens=250, temperature=0.7, min_p=0.05, seed=seed)
        for seed in range(len(passages))
    ]
    for words, completion in zip(split, llm.generate(beginnings, params), strict=True):
        written = completion.text.strip().split(" ")
        if completion.finish_reason == "length":
            written.pop()  # it may be half a word
        count = min(len(written), len(words) - BEGINNING_WORDS)
        after = words[BEGINNING_WORDS : BEGINNING_WORDS + count]
        yield " ".join(written[:count]), " ".join(after), completion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, metavar="TRAIN")
    parser.add_argument("held_out", type=Path, metavar="HELD_OUT")
    parser.add_argument("model", nargs="?", default="trilobit-arabic-7m", metavar="MODEL")
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="of what breaks a rule"
    )
    given = parser.parse_args()
    train, held_out = (
        [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (given.train, given.held_out)
    )
    language = learn(train)
    *texts, completions = zip(*continued(LLM(given.model), held_out), strict=True)
    sides = [told(side, language) for side in texts]
    print("| broken, of 1,000 | the model | people | of the model's |\n|---|---|---|---|")
    for name in RULES:
        cells = []
        for found in (side[name] for side in sides):
            broken = sum(not right for _, right in found)
            cells.append(f"{1000 * broken / max(len(found), 1):.1f} ({broken} of {len(found):,})")
        wrong = [phrase for phrase, right in sides[0][name] if not right]
        some = "، ".join(wrong[:: len(wrong) // given.examples + 1]) if given.examples else ""
        print(f"| {name} | {cells[0]} | {cells[1]} | {some} |")
    ended = [one.text.strip() for one in completions if one.finish_reason != "length"]
    behind = sum(text.endswith(tuple(".!؟»…")) for text in ended)
    print(f"\nOf {len(completions)} texts {len(ended)} ended, {behind} of them with a sentence.")


if __name__ == "__main__":
    main()
