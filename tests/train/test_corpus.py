"""The text of a run: read, cut, tokenised, and refused in one line where it cannot be used."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fables import FABLES, HELD_OUT, RECIPE, one_error, train, write_recipe

from trilobit.train.data.tokens import prepare
from trilobit.train.data.windows import Passes, TrainingWindows, batch_of
from trilobit.train.recipes import load_recipe


def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    plain, windows = tmp_path / "plain", tmp_path / "windows"
    text = "\n\n".join(f"{fable}\n{fable}" for fable in FABLES * 4)
    tokens = []
    for folder, content in (
        (plain, text.encode()),
        (windows, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
    ):
        folder.mkdir()
        recipe = write_recipe(folder, RECIPE.replace("fables.jsonl", "text.txt"))
        (folder / "text.txt").write_bytes(content)
        tokens.append(prepare(load_recipe(recipe), folder / "corpus"))
    assert tokens[0].train.tolist() == tokens[1].train.tolist()
    assert tokens[0].held_out.tolist() == tokens[1].held_out.tolist()
    assert tokens[0].held_out_bytes == tokens[1].held_out_bytes


def test_a_text_without_paragraphs_is_cut_all_the_same(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("fables.jsonl", "text.txt"))
    text = "\n".join(FABLES * 60)
    (tmp_path / "text.txt").write_text(text)
    corpus = prepare(load_recipe(recipe), tmp_path / "corpus")
    # Cut at the line after 32,000 characters, and every fourth block is held out.
    blocks = -(-len(text) // 32_000)
    assert blocks > 4
    assert corpus.held_out.tolist().count(0) == -(-blocks // 4)
    assert corpus.train.tolist().count(0) == blocks - -(-blocks // 4)


def test_tokens_do_not_depend_on_how_many_texts_are_encoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    whole = prepare(recipe, tmp_path / "whole")
    monkeypatch.setattr("trilobit.train.data.tokens._BATCH_CHARACTERS", 1)
    single = prepare(recipe, tmp_path / "single")
    assert whole.train.tolist() == single.train.tolist()
    assert whole.held_out.tolist() == single.held_out.tolist()
    assert whole.train.dtype == np.uint16
    assert whole.held_out_bytes == sum(len(fable.encode()) for fable in HELD_OUT)


def test_windows_of_an_epoch_cover_the_text_once() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    passes = Passes(tokens, window=32, seeds=(0,))
    windows = TrainingWindows(passes, count=10_000)
    assert passes.per_epoch == 30
    epochs = [
        [windows[epoch * 30 + place]["input_ids"] for place in range(30)] for epoch in range(2)
    ]
    for epoch in epochs:
        starts = sorted(int(ids[0]) for ids in epoch)
        assert starts[0] < 32
        assert [start - starts[0] for start in starts] == list(range(0, 960, 32))
        assert all((ids.diff() == 1).all() for ids in epoch)
    first, second = ([int(ids[0]) for ids in epoch] for epoch in epochs)
    assert first != second


def test_short_windows_are_the_long_ones_in_parts() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    passes = Passes(tokens, window=32, seeds=(0,))
    whole = TrainingWindows(passes, count=99)
    parts = TrainingWindows(passes, count=99, short=8, whole_from=50)
    for index in (0, 49):
        assert parts[index]["input_ids"].shape == (4, 8)
        assert parts[index]["input_ids"].flatten().equal(whole[index]["input_ids"])
    assert parts[50]["labels"].equal(whole[50]["labels"])
    batch = batch_of([parts[0], parts[1]])
    assert batch["input_ids"].shape == (8, 8)
    assert batch["labels"][4:].equal(parts[1]["labels"])
    assert batch_of([whole[0], whole[1]])["input_ids"].shape == (2, 32)


def _cut_xz(whole: bytes) -> bytes:
    packed = lzma.compress(whole)
    return packed[: len(packed) // 2]


@pytest.mark.parametrize(
    ("name", "content", "change", "message"),
    [
        (
            "gone.txt",
            None,
            (),
            "{path}: cannot read the training text (no such file); check its name",
        ),
        ("text.doc", b"x", (), "{path}: a text file's name ends in .txt or .jsonl (or those .xz)"),
        ("text.txt", b"", (), "{path}: no text in it"),
        ("text.jsonl", b"\n\n", (), "{path}: no text in it"),
        ("text.txt", b"fine\n\xff\xfe\n", (), "{path}: line 2 is not UTF-8; convert the file, or "),
        (
            "text.jsonl",
            b'{"text": "a"}\n{"txt": 1}\n',
            (),
            "{path}: line 2 is no JSON object with a",
        ),
        ("text.jsonl", b"[" * 100_000, (), "{path}: line 1 is no JSON object with a 'text'; mend"),
        ("text.jsonl", b'{"text": 3}\n', (), "{path}: line 1: 'text' is no string; mend or remove"),
        ("text.jsonl", b'{"text": "\\ud800"}', (), "{path}: line 1: 'text' holds half a character"),
        ("text.txt.xz", b"not xz", (), "{path}: is no whole .xz file ("),
        ("text.jsonl.xz", _cut_xz, (), "{path}: is no whole .xz file ("),
        (
            "text.txt",
            b"one block",
            (),
            "{path}: too little text: no document is to train on; what is there is all held out; ",
        ),
        (
            "text.jsonl",
            b'\n{"text": "a"}\n{"text": "b"}\n',
            (),
            "{path}: too little text: of 2 documents none is held out by held_out_every = 4; lower",
        ),
        (
            "text.jsonl",
            b'{"text": "a"}\n{"text": "b"}\n',
            (),
            "the training text has 3 tokens, too few for windows of 32; add text or lower data.win",
        ),
        (
            "text.jsonl",
            (json.dumps({"text": "short"}) + "\n" + json.dumps({"text": FABLES[0]})).encode(),
            (),
            "the held-out text has 7 tokens, less than one window of 32; lower data.held_out",
        ),
        (
            "text.jsonl",
            b'{"text": "a", "source": "c"}\n{"text": "a"}\n',
            ("held_out_every", 'source = "c"\nheld_out_every'),
            "{path}: line 2 has no 'source', and data.source of the recipe takes only lines whose "
            "'source' is 'c'; leave data.source out to take all",
        ),
        (
            "text.jsonl",
            b'{"text": "a", "source": "b"}\n',
            ("held_out_every", 'source = "c"\nheld_out_every'),
            "{path}: no text with source 'c' in it",
        ),
    ],
)
def test_text_that_cannot_be_used_is_one_line(
    tmp_path: Path, name: str, content: Any, change: tuple[str, str] | tuple[()], message: str
) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace(*change) if change else RECIPE)
    path = tmp_path / name
    if callable(content):
        content = content((tmp_path / "fables.jsonl").read_bytes())
    if content is not None:
        path.write_bytes(content)
    error = one_error(train(recipe, tmp_path / "run", "--data", str(path)))
    assert error.startswith(message.format(path=path))
    assert not (tmp_path / "run" / "model").exists()
