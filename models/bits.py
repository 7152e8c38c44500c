"""Bits per byte and character of a model on .jsonl files, plain or .xz: a document a line.

python models/bits.py [--model MODEL] [--held-out 50] [--source tinystories] [--column ar] FILE...

Every document begins anew, and its end counts: the bits of all its tokens and of the one that ends
it, over the bytes of all texts in UTF-8. What is longer than the context is read in windows of it
that overlap by half. Beside each other languages compare by characters, if at all: an Arabic letter
is two bytes, an English one is one.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from trilobit import LLM
from trilobit.bundled import DEFAULT


def texts(
    path: Path, held_out: int, source: str | None, column: str, *, bare: bool
) -> Iterator[str]:
    """The texts of every line, or of each whose number is a multiple of `held_out`."""
    unpack = lzma.open if path.suffix == ".xz" else open
    with unpack(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            if number % held_out == 0 and (source is None or record.get("source") == source):
                text = record[column].strip()
                yield without_marks(text) if bare else text


def without_marks(text: str) -> str:
    """Arabic as novels print it: no vowels or signs of recitation, the plain alif."""
    letters = (one for one in text if unicodedata.category(one) != "Mn")
    return "".join(letters).replace("\u0671", "\u0627")


def bits(llm: LLM, text: str) -> float:
    """Bits of a text and its end, after what begins a text."""
    ids = [*llm.encode(text), llm.config.eos_token_ids[0]]
    half = llm.context // 2
    nats = 0.0
    for start in range(0, max(len(ids) - half, 1), half):
        logprobs = llm.score(ids[start : start + llm.context]).logprobs
        nats -= float(logprobs[half - 1 if start else 0 :].sum())
    return nats / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--held-out", type=int, default=1, metavar="N", help="lines 0, N, 2N, ...")
    parser.add_argument("--source", help="only lines of this source")
    parser.add_argument("--column", default="text", help="where a line has its text")
    parser.add_argument("--bare", action="store_true", help="without the marks of Arabic vowels")
    given = parser.parse_args()
    llm = LLM(given.model)
    for path in given.files:
        found = list(texts(path, given.held_out, given.source, given.column, bare=given.bare))
        size, letters = sum(len(text.encode()) for text in found), sum(map(len, found))
        all_ = sum(bits(llm, text) for text in found)
        print(
            f"{path.name}: {all_ / size:.4f} bits a byte, {all_ / letters:.4f} a character "
            f"({len(found)} documents, {size:,} bytes, {letters:,} characters)"
        )


if __name__ == "__main__":
    main()
