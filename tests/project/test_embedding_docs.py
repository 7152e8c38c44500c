"""The example of docs/embeddings.md, run as it stands, and the claims beside it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from trilobit import Embedder, similarity

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "search_notes.py"
NOTES = {
    "plants.md": "# Plants\n\nThe big tree in the park.\nIt is very old.\n\n\n\nA little flower.\n",
    "pets/dog.txt": "The dog ran and ran until the sun went down.\n\nThe dog was kind.\n",
    "ignored.py": "A little flower.\n",
}


def search(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_search_finds_the_paragraphs_by_their_vectors(model_file: Path, tmp_path: Path) -> None:
    for name, text in NOTES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = search("find", tmp_path, "a flower")
    assert done.returncode == 1
    assert "has no index" in done.stderr
    done = search("index", tmp_path, "--model", model_file)
    assert (done.returncode, done.stdout) == (0, "5 paragraphs, 0.0 MB\n"), done.stderr
    with np.load(tmp_path / ".search.npz") as stored:
        files, lines = stored["files"].tolist(), stored["lines"].tolist()
        texts, vectors = stored["texts"].tolist(), stored["vectors"]
    assert list(zip(files, lines, strict=True)) == [
        ("pets/dog.txt", 1),
        ("pets/dog.txt", 3),
        ("plants.md", 1),
        ("plants.md", 3),
        ("plants.md", 8),
    ]
    embedder = Embedder(model_file)
    instruction = re.search(r'^INSTRUCTION = "(.+)"$', SCRIPT.read_text(), re.MULTILINE)
    assert instruction is not None
    query = embedder.encode("Where is the dog?", instruction=instruction[1])
    cosines = similarity(query, vectors, "int8")[0]
    order = np.argsort(-cosines)[:2]
    done = search("find", tmp_path, "Where is the dog?", "--count", 2)
    assert done.stdout.splitlines() == [
        f"{cosines[n]:.3f}  {files[n]}:{lines[n]}  {' '.join(texts[n].split())}" for n in order
    ], done.stderr
    # The vectors of the index are those of the paragraphs, within their 8 bits.
    assert (similarity(embedder.encode(texts), vectors, "int8").diagonal() > 0.999).all()


def test_the_page_shows_the_script_and_runs(model_file: Path) -> None:
    page = (ROOT / "docs" / "embeddings.md").read_text(encoding="utf-8")
    assert "examples/search_notes.py" in page
    blocks = re.findall(r"^```python\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    program = "\n".join(blocks).replace('"bitnet-embedding-0.6b"', repr(str(model_file)))
    program = program.replace("256", "32")  # of the tiny model's 60 dimensions
    subprocess.run([sys.executable, "-c", program], check=True)
