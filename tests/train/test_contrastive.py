"""`kind = "embed"`: texts that are alike have vectors that point alike, in the engine too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from fables import Run, one_error, train

from trilobit import Embedder
from trilobit.train.objectives.contrastive import cosines_of, last_states

pytestmark = pytest.mark.usefixtures("one_thread")

ALIKE = (
    ("the fox wanted grapes", "grapes hung high above the fox"),
    ("a thirsty crow", "the crow drank water"),
    ("the wolf and the crane", "a crane drew the bone out of the wolf"),
    ("the hare ran a race", "a tortoise won the race"),
)
EMBED = """
kind = "embed"
name = "vectors"
start = "base"
log_every = 5
evaluate_every = 20
save_every = 13
[data]
files = ["alike.jsonl"]
held_out_every = 4
window = 32
[schedule]
steps = 40
batch_windows = 8
accumulate_steps = 2
warmup_steps = 5
stage_1 = [3e-3, 3e-3]
stage_2 = [3e-3, 0.0]
"""


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    shutil.copytree(run.output / "model", folder / "base")
    pairs = [ALIKE[(i // 4 + i) % 4] for i in range(16)]  # each is held out once, and there too
    lines = (json.dumps({"anchor": a, "positive": b}) + "\n" for a, b in pairs)
    (folder / "alike.jsonl").write_text("".join(lines))
    (folder / "recipe.toml").write_text(EMBED)
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    output = folder / "run"
    packed = ("--packed", str(folder / "vectors.trilobit"))
    outcome = train(folder / "recipe.toml", output, "--json", *packed)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["held_out_accuracy"] == 1.0
    assert result["held_out_perplexity"] is None
    assert result["held_out_loss"] < 0.3  # guessing among four: 1.39
    return output


@pytest.fixture(scope="module")
def embedder(trained: Path) -> Embedder:
    return Embedder(trained.parent / "vectors.trilobit", kv_dtype="f32", threads=1)


def test_texts_that_are_alike_are_nearest(embedder: Embedder) -> None:
    first, second = (embedder.encode([pair[i] for pair in ALIKE]) for i in (0, 1))
    assert (first @ second.T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_the_engine_pools_as_the_training_did(trained: Path, embedder: Embedder) -> None:
    assert embedder.pooling.mode == "last"
    assert embedder.pooling.end_ids == (1,)
    ids = np.load(trained / "corpus" / "held_out.npy")
    _, end = np.load(trained / "corpus" / "held_out_places.npy")[0]
    model = stock.load(trained / "packed")
    with torch.no_grad():
        states = model(
            input_ids=torch.from_numpy(ids[None, :end].astype(np.int64)), output_hidden_states=True
        ).hidden_states[-1]
    theirs = states[0, -1].double().numpy()
    (mine,) = embedder.encode([ALIKE[0][0]])
    assert mine @ (theirs / np.linalg.norm(theirs)) > 0.999  # rounding ties: see test_export.py


def test_the_masters_pool_so_too(trained: Path, tmp_path: Path, embedder: Embedder) -> None:
    from trilobit.conversion import convert

    convert(trained / "model", tmp_path / "again.trilobit", "packed")
    with Embedder(tmp_path / "again.trilobit", kv_dtype="f32", threads=1) as again:
        assert again.pooling == embedder.pooling
        texts = [text for pair in ALIKE for text in pair]
        assert again.encode(texts).tobytes() == embedder.encode(texts).tobytes()


def test_it_goes_on_bit_for_bit(folder: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    shutil.copy(trained / "recipe.json", output)
    for name in ("corpus", "checkpoint-39"):
        shutil.copytree(trained / name, output / name)
    outcome = train(folder / "recipe.toml", output)
    assert "going on from checkpoint-39" in outcome.err
    model = Path("model") / "model.safetensors"
    assert (output / model).read_bytes() == (trained / model).read_bytes()


def test_a_text_is_its_last_tokens_state_whatever_is_padded() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert last_states(states, mask).tolist() == [[2.0, 3.0], [10.0, 11.0]]


def test_cosines_are_of_first_texts_with_second_ones() -> None:
    vectors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, -5.0]])
    half = 0.5**0.5
    expected = np.array([[half, 0.0], [half, -1.0]])
    assert cosines_of(vectors).numpy() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"anchor": "a"}, "'positive' is no string; mend or remove it"),
        ({"positive": "a"}, "is no JSON object with a 'anchor'; mend or remove it"),
        ({"anchor": "a", "positive": " "}, "'anchor' or 'positive' is empty; mend or remove it"),
        ({"anchor": ["a"], "positive": "b"}, "'anchor' is no string; mend or remove it"),
    ],
)
def test_what_is_no_pair_is_one_line(
    folder: Path, tmp_path: Path, record: Any, message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(record) + "\n")
    error = one_error(train(folder / "recipe.toml", tmp_path / "run", "--data", str(bad)))
    assert error.startswith(f"{bad}: line 1")
    assert message in error


def test_a_pair_alone_is_told_from_nothing(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(EMBED.replace("batch_windows = 8", "batch_windows = 2"))
    error = one_error(train(recipe, tmp_path / "run"))
    assert error.startswith(f"{recipe}: schedule.batch_windows must be at least 2 in each of")
