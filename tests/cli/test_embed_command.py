"""`trilobit embed`, run as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from program import succeed, trilobit

from trilobit import Embedder, pack_vectors


@pytest.fixture
def notes(tmp_path: Path) -> list[Path]:
    files = []
    for name, text in (("a.txt", "the dog ran\n"), ("b.txt", "a red ball\nin the park\n")):
        (tmp_path / name).write_text(text)
        files.append(tmp_path / name)
    return files


def rows(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_each_line_of_stdin_is_a_text(model_file: Path) -> None:
    texts = ["the dog", "", "a ball\u2028in the park", "one"]  # an empty line has a vector too
    got = rows(succeed("embed", model_file, stdin="\r\n".join(texts).encode()))
    vectors = Embedder(model_file).encode(texts)
    assert [row["line"] for row in got] == [1, 2, 3, 4]
    numbers = np.array([row["embedding"] for row in got], dtype=np.float32)
    assert (numbers == vectors).all()  # not a bit is lost in the text


def test_each_file_is_a_text_or_has_one_a_line(model_file: Path, notes: list[Path]) -> None:
    embedder = Embedder(model_file)
    got = rows(succeed("embed", model_file, *notes))
    assert [row["file"] for row in got] == [str(path) for path in notes]
    wanted = embedder.encode(["the dog ran", "a red ball\nin the park"])
    assert (np.array([row["embedding"] for row in got], dtype=np.float32) == wanted).all()
    got = rows(succeed("embed", model_file, *notes, "--lines"))
    assert [(row["file"], row["line"]) for row in got] == [
        (str(notes[0]), 1),
        (str(notes[1]), 1),
        (str(notes[1]), 2),
    ]


def test_out_is_a_numpy_array_as_the_options_say(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    options = ("--dimensions", 21, "--precision", "int4", "--instruction", "Find", "--out", out)
    assert succeed("embed", model_file, *options, stdin=b"dog\nball\n") == ""
    vectors = Embedder(model_file).encode(["dog", "ball"], instruction="Find", dimensions=21)
    stored = np.load(out)
    assert stored.dtype == np.uint8
    assert (stored == pack_vectors(vectors, "int4")).all()
    assert rows(succeed("embed", model_file, *options[:-2], stdin=b"dog\nball\n")) == [
        {"line": n + 1, "embedding": row.tolist()} for n, row in enumerate(stored)
    ]
    done = trilobit("embed", model_file, "--out", out, stdin=b"dog\n")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {out}: exists; choose another name, or replace it with --force\n"
    )
    succeed("embed", model_file, "--out", out, "--force", "--pooling", "mean", stdin=b"dog\n")
    assert (np.load(out) == Embedder(model_file, pooling="mean").encode("dog")).all()
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]


def test_the_layout_changes_no_vector(model_file: Path) -> None:
    told = [
        succeed("embed", model_file, *options, stdin=b"dog\nball\n")
        for options in ((), ("--layout", "1.6-bit"), ("--layout", "auto"))
    ]
    assert told[0] == told[1] == told[2]


def test_info_says_how_a_model_pools(checkpoint: Path, model_file: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    for name, value in (
        ("config_sentence_transformers.json", {"prompts": {"query": "Find: ", "document": ""}}),
        ("tokenizer_config.json", {"add_eos_token": True}),
    ):
        (source / name).write_text(json.dumps(value))
    done = succeed("convert", source, tmp_path / "model.trilobit")
    assert f"Embed with it: trilobit embed {tmp_path}/model.trilobit FILES\n" in done
    line = "  embeddings       the last token's state, after token 1; prompts query, document\n"
    assert line in succeed("info", tmp_path / "model.trilobit")
    facts = json.loads(succeed("info", tmp_path / "model.trilobit", "--json"))
    assert facts["pooling"]["end_ids"] == [1]
    assert "embeddings" not in succeed("info", model_file)


def test_nothing_in_is_nothing_out(model_file: Path, tmp_path: Path) -> None:
    assert succeed("embed", model_file) == ""
    succeed("embed", model_file, "--out", tmp_path / "none.npy")
    assert np.load(tmp_path / "none.npy").shape == (0, 60)


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (
            ["--context", "4"],
            b"one two three four five\n",
            "text 0 ('one two three four five'…) has",
        ),
        (["--prompt", "query"], b"dog\n", "has no prompt 'query'; it has none"),
        (["--dimensions", "100"], b"dog\n", "dimensions is 100; expected an integer from 1 to 60"),
        ([], b"dog\n\xff\n", "standard input: not UTF-8 text (byte 4)"),
        (["missing.txt"], b"", "missing.txt: no such file; check the name"),
        (["--out", "nowhere/v.npy"], b"dog\n", "nowhere/v.npy: cannot be written"),
        (["--precision", "int3"], b"dog\n", "'int3' is not one of 'float32', 'int8'"),
    ],
)
def test_errors_are_one_line(model_file: Path, args: list[str], stdin: bytes, message: str) -> None:
    done = trilobit("embed", model_file, *args, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
