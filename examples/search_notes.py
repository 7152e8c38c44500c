"""Semantic search over a folder of text files. The index is one file of numpy arrays.

    python examples/search_notes.py index notes --model bitnet-embedding-0.6b
    python examples/search_notes.py find notes "How often does a cactus want water?"

Each paragraph of each .txt and .md file has a vector in 8 bits, 1 KB for the 0.6B model. A million
paragraphs are 1 GB, and one product of a matrix and a vector away: no database is needed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from trilobit import Embedder, similarity

INDEX = ".search.npz"
PRECISION = "int8"
# Questions are asked with an instruction, paragraphs are embedded as they are.
INSTRUCTION = "Given a question, retrieve passages that answer the question"


def paragraphs(folder: Path) -> list[tuple[str, int, str]]:
    """File, line and text of every paragraph: lines up to an empty one."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".txt", ".md") or not path.is_file():
            continue
        line = 1
        for block in path.read_text(encoding="utf-8", errors="replace").split("\n\n"):
            if block.strip():
                found.append((str(path.relative_to(folder)), line, block.strip()))
            line += block.count("\n") + 2
    return found


def index(folder: Path, model: str) -> None:
    """Make vectors of all paragraphs, and write the index."""
    if not (found := paragraphs(folder)):
        raise SystemExit(f"{folder}: no text in .txt or .md files")
    vectors = Embedder(model).encode(
        [text for _, _, text in found], precision=PRECISION, truncate=True
    )
    files, lines, texts = zip(*found, strict=True)
    new = folder / f"{INDEX}.new.npz"
    np.savez(new, vectors=vectors, files=files, lines=lines, texts=texts, model=model)
    os.replace(new, folder / INDEX)  # whole, or the old one
    print(f"{len(found)} paragraphs, {vectors.nbytes / 1e6:.1f} MB")


def find(folder: Path, question: str, count: int) -> None:
    """Print the paragraphs that are nearest to a question."""
    if not (folder / INDEX).exists():
        raise SystemExit(f"{folder}: has no index; make one with the command index")
    with np.load(folder / INDEX) as stored:
        model = str(stored["model"])
        vectors, files, lines, texts = (
            stored[name] for name in ("vectors", "files", "lines", "texts")
        )
    query = Embedder(model).encode(question, instruction=INSTRUCTION)
    cosines = similarity(query, vectors, PRECISION)[0]
    for row in np.argsort(-cosines, kind="stable")[:count]:
        print(f"{cosines[row]:.3f}  {files[row]}:{lines[row]}  {' '.join(texts[row].split())[:70]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["index", "find"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("question", nargs="?", default="")
    parser.add_argument("--model", default="bitnet-embedding-0.6b", help="of an index")
    parser.add_argument("--count", type=int, default=5, help="how many paragraphs to find")
    args = parser.parse_args()
    if args.command == "index":
        index(args.folder, args.model)
    else:
        find(args.folder, args.question, args.count)
