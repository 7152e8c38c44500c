"""`z_loss`: what is added is the formula's, and it keeps log Z small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from fables import RECIPE, one_error, train, write_recipe

from trilobit.train.objectives.causal import log_partition

pytestmark = pytest.mark.usefixtures("one_thread")


def test_log_partition_is_the_formula() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 2], [3, 4, -100]])
    expected = 0.0
    for n, t in ((0, 0), (0, 2), (1, 0), (1, 1)):
        expected += math.log(sum(math.exp(x) for x in logits[n, t].tolist())) ** 2
    # float32 sums of a few terms.
    assert float(log_partition(logits, labels)) == pytest.approx(expected, rel=1e-5)


def _first_loss(folder: Path, name: str, more: str) -> float:
    text = RECIPE.replace("log_every = 5", f"log_every = 1\n{more}")
    outcome = train(write_recipe(folder, text), folder / name, "--max-steps", "11")
    assert outcome.code == 0, outcome.err
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    return next(entry["loss"] for entry in map(json.loads, lines) if "loss" in entry)


def test_it_is_added_to_the_loss_of_every_token_whatever_the_parts(tmp_path: Path) -> None:
    plain, with_z = (_first_loss(tmp_path, str(z), f"z_loss = {z}") for z in (0.0, 0.5))
    # A new model's logits are small: Z is about the vocabulary.
    assert with_z - plain == pytest.approx(0.5 * math.log(320) ** 2, rel=0.2)
    (tmp_path / "parts").mkdir()
    text = "z_loss = 0.5"
    recipe = RECIPE.replace("log_every = 5", f"log_every = 1\n{text}").replace(
        "batch_windows = 4", "batch_windows = 4\naccumulate_steps = 2"
    )
    outcome = train(
        write_recipe(tmp_path / "parts", recipe), tmp_path / "halves", "--max-steps", "11"
    )
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "halves" / "log.jsonl").read_text().splitlines()
    halves = next(entry["loss"] for entry in map(json.loads, lines) if "loss" in entry)
    assert halves == pytest.approx(with_z, rel=1e-4)


def test_a_share_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE.replace("log_every = 5", "z_loss = -1.0"))
    assert "z_loss is -1.0; it must be from 0 to 1" in one_error(train(recipe, tmp_path / "run"))
