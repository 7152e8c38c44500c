"""`dropout` and `replace_tokens`: what a run draws is a function of its seed and its step."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fables import RECIPE, one_error, train, write_recipe

from trilobit import RecipeError
from trilobit.train.data.windows import Passes, TrainingWindows
from trilobit.train.dropout import SeedSteps, drop_out
from trilobit.train.recipes import recipe_of

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = RECIPE.replace("steps = 120", "steps = 20").replace("save_every = 13", "save_every = 12")
DROPPED = SHORT.replace("log_every", "dropout = 0.2\nlog_every")
REPLACED = SHORT.replace("held_out_every", "replace_tokens = 0.2\nheld_out_every")
BOTH = DROPPED.replace("held_out_every", "replace_tokens = 0.2\nheld_out_every")


def _weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def _run(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir()
    outcome = train(write_recipe(folder / name, text), folder / name / "run")
    assert outcome.code == 0, outcome.err
    return folder / name / "run"


def test_a_run_with_both_goes_on_bit_for_bit_whatever_lies_between(tmp_path: Path) -> None:
    whole = _run(tmp_path, "whole", BOTH)
    again = tmp_path / "again"
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoint-20")
    # Evaluations draw from torch's generator too, and a checkpoint may have lost its state.
    text = BOTH.replace("evaluate_every = 40", "evaluate_every = 3")
    outcome = train(write_recipe(tmp_path, text), again)
    assert outcome.code == 0, outcome.err
    assert "going on from checkpoint-12" in outcome.err
    assert _weights(again) == _weights(whole)


def test_each_of_them_changes_the_model(tmp_path: Path) -> None:
    texts = {"plain": SHORT, "dropped": DROPPED, "replaced": REPLACED}
    models = {_weights(_run(tmp_path, name, text)) for name, text in texts.items()}
    assert len(models) == 3


def _windows(seed: int = 0, **more: Any) -> TrainingWindows:
    tokens = np.arange(10_000, dtype=np.uint16) % 300
    passes = Passes(tokens, window=100, seeds=(seed,))
    return TrainingWindows(passes, count=200, seed=seed, **more)


def test_a_share_of_the_inputs_is_others_and_no_label_is() -> None:
    plain, replaced = _windows(), _windows(replace=0.3, vocab_size=1000)
    changed, drawn = [], []
    for index in range(200):
        ids, labels = replaced[index]["input_ids"], replaced[index]["labels"]
        assert torch.equal(labels, plain[index]["labels"])
        changed.append((ids != labels).float().mean().item())
        drawn.append(ids[ids != labels])
    # 20,000 draws: three deviations are 0.01, and one in a thousand is what it was.
    assert np.mean(changed) == pytest.approx(0.3, abs=0.01)
    values = torch.cat(drawn)
    assert values.min() < 20
    assert 980 < values.max() < 1000


def test_what_is_replaced_follows_from_the_seed_and_the_window() -> None:
    one, same, other = (
        _windows(seed, replace=0.3, vocab_size=300, short=50, whole_from=1) for seed in (0, 0, 1)
    )
    assert one[0]["input_ids"].shape == (2, 50)
    assert torch.equal(one[7]["input_ids"], one[7]["input_ids"])
    assert torch.equal(one[7]["input_ids"], same[7]["input_ids"])
    masks = [w[7]["input_ids"] != w[7]["labels"] for w in (one, other)]
    assert not torch.equal(*masks)


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj, self.down_proj = (
            torch.nn.Linear(64, 64, bias=False) for _ in range(3)
        )


def test_what_is_left_of_an_output_is_scaled_up_in_training_only() -> None:
    layer, x = _Layer(), torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    before = {name: module(x) for name, module in layer.named_children()}
    drop_out(layer, 0.25)
    torch.manual_seed(0)
    for name, module in layer.named_children():
        after = module(x)
        if name == "q_proj":
            assert torch.equal(after, before[name])
            continue
        left = after != 0
        # 3,200 draws: four deviations.
        assert left.float().mean() == pytest.approx(0.75, abs=0.03)
        torch.testing.assert_close(after[left], before[name][left] / 0.75)
    layer.eval()
    for name, module in layer.named_children():
        assert torch.equal(module(x), before[name])


def test_a_steps_draws_follow_from_seed_step_and_process() -> None:
    def drawn(seed: int, step: int, process: int) -> tuple[float, ...]:
        state, args = SimpleNamespace(global_step=step), SimpleNamespace(process_index=process)
        SeedSteps(seed).on_step_begin(args, state, None)
        return tuple(torch.rand(4).tolist())

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    first = [drawn(*place) for place in places]
    assert [drawn(*place) for place in places] == first
    assert len(set(first)) == 4


def test_a_model_that_adds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no module is named o_proj or down_proj"):
        drop_out(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0.1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("log_every", "dropout = 1.0\nlog_every", "dropout is 1.0; it must be from 0 to below 1"),
        (
            "held_out_every",
            "replace_tokens = -0.1\nheld_out_every",
            "data.replace_tokens is -0.1; it must be from 0 to below 1",
        ),
    ],
)
def test_a_share_that_cannot_be_is_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    recipe = write_recipe(tmp_path, SHORT.replace(old, new, 1))
    assert message in one_error(train(recipe, tmp_path / "run"))


@pytest.mark.parametrize("key", ["dropout", "hadamard", "activations", "compile"])
def test_beside_an_adapter_they_have_no_place(key: str) -> None:
    value: Any = {"dropout": 0.1, "activations": "int4"}.get(key, True)
    values = {"name": "a", "start": "b", "data": {"files": ["a.txt"]}, "schedule": {"steps": 10}}
    with pytest.raises(RecipeError, match=f"{key} has no place beside an adapter"):
        recipe_of({**values, "adapter": {}, key: value})


@pytest.mark.parametrize("key", ["dropout", "data.replace_tokens"])
def test_beside_a_teacher_they_have_no_place(key: str) -> None:
    values: dict[str, Any] = {"kind": "distill", "name": "a", "teacher": "b"}
    data: dict[str, Any] = {"files": ["a.txt"]}
    (data if key.startswith("data") else values)[key.removeprefix("data.")] = 0.1
    with pytest.raises(RecipeError, match=f"{key} has no place beside a teacher's loss"):
        recipe_of({**values, "data": data, "schedule": {"steps": 10}})
