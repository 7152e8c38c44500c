"""Passages of Arabic novels, to train and to measure on: {"novel": n, "text": ...} lines.

    python models/trilobit-arabic-7m/passages.py FOLDER NOVELS

NOVELS is a text file, plain or .xz, of novels that end with <|endoftext|>. FOLDER/train.jsonl gets
all but the last two of them, FOLDER/held_out.jsonl those. A passage is as many whole paragraphs as
1,500 characters hold.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

END = "<|endoftext|>"
HELD_OUT = 2
LONGEST = 1500
# Of this many characters at least: shorter ones are headings and numbers of pages.
SHORTEST = 200
# A note's number or a blessing stands on a line of its own in the middle of a sentence.
NOTE = re.compile(r"\s*\n[٠-٩0-9]+\n\s*")
BLESSING = re.compile(r"\s*\n?ﷺ[ \n]*")
# Letters as they stand in a word, an elongated line, vowels: other spellings of the same word.
SHAPES = re.compile("[\ufe70-\ufefc]+")
DROPPED = re.compile("[\u0640\u064b-\u0652\u0670\u200b-\u200f\ufeff]")
FOREIGN = re.compile(r"[A-Za-z|<>\[\]]")


def cleaned(novel: str) -> Iterator[str]:
    """The paragraphs of a novel in one spelling, without notes' numbers and foreign words."""
    text = SHAPES.sub(lambda found: unicodedata.normalize("NFKC", found[0]), novel)
    text = BLESSING.sub(" ﷺ ", NOTE.sub(" ", DROPPED.sub("", text)))
    for line in text.split("\n"):
        paragraph = " ".join(line.split()).replace(" ،", "،").replace(" .", ".")
        if paragraph and not FOREIGN.search(paragraph) and any(map(str.isalpha, paragraph)):
            yield paragraph


def passages(novel: str) -> Iterator[str]:
    """Whole paragraphs that follow each other; a longer one is cut behind a sentence."""
    held: list[str] = []
    for paragraph in cleaned(novel):
        for part in cut(paragraph):
            if held and sum(map(len, held)) + len(part) > LONGEST:
                yield "\n".join(held)
                held = []
            held.append(part)
    yield "\n".join(held)


def cut(paragraph: str) -> Iterator[str]:
    """A paragraph, or runs of its sentences where it is longer than a passage."""
    held = ""
    for sentence in re.split(r"(?<=[.!؟»…]) ", paragraph):
        if held and len(held) + len(sentence) > LONGEST:
            yield held
            held = ""
        held = f"{held} {sentence}".strip()
    yield held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("novels", type=Path, metavar="NOVELS")
    given = parser.parse_args()
    unpack = lzma.open if given.novels.suffix == ".xz" else open
    with unpack(given.novels, "rt", encoding="utf-8") as file:
        novels = [novel for novel in file.read().split(END) if novel.strip()]
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (
        ("train.jsonl", range(len(novels) - HELD_OUT)),
        ("held_out.jsonl", range(len(novels) - HELD_OUT, len(novels))),
    ):
        with (given.folder / name).open("w", encoding="utf-8") as file:
            for number in numbers:
                for text in passages(novels[number]):
                    if len(text) >= SHORTEST:
                        line = {"novel": number, "text": text}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
