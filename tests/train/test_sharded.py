"""A model in shards learns as a whole one does, and goes on from its checkpoints."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fables import RECIPE, Outcome, arguments, one_error, train, write_recipe
from safetensors.numpy import load_file
from torch import nn
from worlds import Worlds

from trilobit.errors import RecipeError
from trilobit.nn import absmean
from trilobit.nn.bitlinear import _inverse_mean
from trilobit.train.gathered import Masters
from trilobit.train.recipes import recipe_of

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks what has loaded torch"),
]

_PLAIN = (
    RECIPE.replace("log_every = 5", "log_every = 1")
    .replace("evaluate_every = 40", "evaluate_every = 6")
    .replace("save_every = 13", "save_every = 4")
    .replace("quantisation_warmup_steps = 10\n", "")
    .replace("steps = 120", "steps = 10")
)
_SHARDED = f"sharded = true\n{_PLAIN}"
# Of a loss near 5: twice the most that was seen in 15 steps, of processes with whole models too.
_ROUNDING = 1e-2
_MUON = 'optimizer = "muon"\n'


@dataclass(frozen=True)
class Trained:
    """A recipe that was followed to its end, and where."""

    recipe: Path
    output: Path


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """Several processes of one run, in seconds."""
    with Worlds(tmp_path_factory.mktemp("worlds")) as worlds:
        yield worlds


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that shards nothing."""
    folder = tmp_path_factory.mktemp("alone")
    outcome = train(write_recipe(folder, _PLAIN), folder / "run")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@pytest.fixture(scope="module")
def two(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same in two processes, each of which has half of the model."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(folder, _SHARDED)
    _follow(worlds, 2, recipe, folder / "run")
    return Trained(recipe, folder / "run")


def _follow(worlds: Worlds, processes: int, recipe: Path, output: Path) -> list[Outcome]:
    outcomes = worlds.run(processes, *arguments(recipe, output))
    assert all(outcome.code == 0 for outcome in outcomes), outcomes
    return outcomes


def _again_from(trained: Trained, step: int, output: Path) -> Path:
    """A copy of a run as it was when it had its checkpoint of that step."""
    shutil.copytree(trained.output, output)
    for path in output.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(output / "model")
    return output


def _log(output: Path, key: str) -> list[float]:
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


def _health(output: Path) -> dict[str, dict[str, float]]:
    lines = (output / "health.jsonl").read_text().splitlines()
    layers: dict[str, dict[str, float]] = json.loads(lines[-1])["layers"]
    return layers


def _weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def _checkpoints(output: Path) -> set[str]:
    return {path.name for path in output.glob("checkpoint-*")}


# ---- learning -----------------------------------------------------------------------------------


def test_two_processes_with_half_a_model_each_learn_as_one(two: Trained, alone: Path) -> None:
    losses, gradients = _log(two.output, "loss"), _log(two.output, "grad_norm")
    # Before anything is learned only the order of sums differs; then codes that rounding flips.
    assert losses[0] == pytest.approx(_log(alone, "loss")[0], abs=2e-4)
    assert losses == pytest.approx(_log(alone, "loss"), abs=_ROUNDING)
    assert gradients == pytest.approx(_log(alone, "grad_norm"), abs=5 * _ROUNDING)


def test_what_they_export_is_a_whole_model(two: Trained, alone: Path) -> None:
    ours = load_file(two.output / "model" / "model.safetensors")
    theirs = load_file(alone / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert np.abs(weight - theirs[name]).mean() < 1e-3
    for name in ("model/config.json", "model/generation_config.json", "packed/config.json"):
        assert (two.output / name).read_bytes() == (alone / name).read_bytes()


def test_scales_are_those_of_whole_matrices(two: Trained, alone: Path) -> None:
    ours, theirs = _health(two.output), _health(alone)
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        assert layer["scale"] == pytest.approx(theirs[name]["scale"], rel=1e-3)


def test_two_bits_a_weight_are_what_bitlinear_rounds_to() -> None:
    whole = torch.randn(12, 20, generator=torch.Generator().manual_seed(1)) ** 3
    whole[0, 0] = 0.0
    codes, scale = absmean(whole)
    inverse_mean = _inverse_mean(whole)
    parts = [Masters(rows, inverse_mean) for rows in whole.chunk(2)]
    sent = [part.fsdp_pre_all_gather(None, None, None, None, None)[0][0] for part in parts]
    assert [(rows.dtype, rows.shape) for rows in sent] == [(torch.uint8, (6, 5))] * 2
    made = parts[0].fsdp_post_all_gather((torch.cat(sent),), inverse_mean, torch.float32)
    assert made is not None
    assert torch.equal(made[0], codes * scale)
    again = nn.Parameter(torch.empty_like(whole))
    parts[1].fsdp_post_all_gather((torch.cat(sent),), inverse_mean, torch.float32, out=again)
    assert torch.equal(again, codes * scale)


# ---- checkpoints --------------------------------------------------------------------------------


def test_a_checkpoint_has_a_part_of_each_process(two: Trained) -> None:
    assert _checkpoints(two.output) == {"checkpoint-8", "checkpoint-10"}
    names = {path.name for path in (two.output / "checkpoint-8").iterdir()}
    assert {".metadata", "__0_0.distcp", "__1_0.distcp", "sums.json"} <= names
    assert "model.safetensors" not in names
    assert not list(two.output.glob(".*.part"))


def test_as_many_processes_go_on_bit_for_bit(worlds: Worlds, two: Trained, tmp_path: Path) -> None:
    output = _again_from(two, 8, tmp_path / "run")
    _follow(worlds, 2, two.recipe, output)
    assert _weights(output) == _weights(two.output)
    assert _log(output, "loss") == _log(two.output, "loss")


@pytest.mark.parametrize("processes", [1, 4])
def test_another_number_of_processes_goes_on_from_the_parts(
    worlds: Worlds, two: Trained, tmp_path: Path, processes: int
) -> None:
    output = _again_from(two, 8, tmp_path / "run")
    first, *_ = _follow(worlds, processes, two.recipe, output)
    assert "going on from checkpoint-8" in first.err
    assert _log(output, "loss") == pytest.approx(_log(two.output, "loss"), abs=_ROUNDING)
    parts = (output / "checkpoint-10").glob("*.distcp")
    assert len(list(parts)) == processes


def test_kill_9_in_a_save_leaves_the_checkpoint_before(
    worlds: Worlds, two: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    killed = worlds.run(2, *arguments(two.recipe, output), kill_in_save=2)
    assert [outcome.code for outcome in killed] == [-signal.SIGKILL, -signal.SIGKILL]
    assert _checkpoints(output) == {"checkpoint-4"}
    half = output / ".checkpoint.part" / "checkpoint-8" / "__1_0.distcp"
    assert half.read_bytes() == b"half of it"
    first, *_ = _follow(worlds, 2, two.recipe, output)
    assert "going on from checkpoint-4" in first.err
    assert not half.exists()
    assert _weights(output) == _weights(two.output)


def test_muon_moves_whole_matrices(worlds: Worlds, tmp_path: Path) -> None:
    whole = write_recipe(tmp_path, _MUON + _PLAIN)
    assert train(whole, tmp_path / "alone").code == 0
    recipe = write_recipe(tmp_path, _MUON + _SHARDED)
    _follow(worlds, 2, recipe, tmp_path / "run")
    # Orthogonal steps carry rounding further than AdamW's: only the first ones compare.
    first = _log(tmp_path / "alone", "loss")[:4]
    assert _log(tmp_path / "run", "loss")[:4] == pytest.approx(first, abs=_ROUNDING)
    again = _again_from(Trained(recipe, tmp_path / "run"), 8, tmp_path / "again")
    _follow(worlds, 2, recipe, again)
    assert _weights(again) == _weights(tmp_path / "run")


def test_parts_that_cannot_be_written_are_one_line(
    worlds: Worlds, two: Trained, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(two.output / "corpus", output / "corpus")
    outcomes = worlds.run(2, *arguments(two.recipe, output), most_bytes=100_000)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    (error,) = [line for line in outcomes[0].err.splitlines() if line.startswith("error: ")]
    where = output / "checkpoint-4"
    assert error.startswith(f"error: {where}: cannot write the checkpoint (")
    assert "Traceback" not in outcomes[0].err
    assert not _checkpoints(output)
    assert not (output / ".checkpoint.part").exists()


def test_parts_without_room_on_the_disk_are_not_begun(
    two: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    checkpoint = _checkpoint_bytes(two.output / "checkpoint-8")
    usage = SimpleNamespace(total=1 << 40, used=0, free=checkpoint // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = one_error(train(two.recipe, output))
    assert re.match(rf"{output / 'checkpoint-4'}: needs [\d.]+ MB, and the disk has [\d.]+", error)
    assert not _checkpoints(output)
    assert not (output / ".checkpoint.part").exists()


def _checkpoint_bytes(folder: Path) -> int:
    return sum(part.stat().st_size for part in folder.glob("*.distcp"))


def test_a_damaged_part_is_one_line(two: Trained, tmp_path: Path) -> None:
    output = _again_from(two, 10, tmp_path / "run")
    part = output / "checkpoint-10" / "__1_0.distcp"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    error = one_error(train(two.recipe, output))
    assert error.startswith(f"{output / 'checkpoint-10'}: is damaged (__1_0.distcp: has another")
    assert error.endswith("; delete it to go on from checkpoint-8")


# ---- recipes that cannot be sharded -------------------------------------------------------------


def test_a_whole_run_does_not_go_on_in_shards(two: Trained, alone: Path) -> None:
    error = one_error(train(two.recipe, alone))
    assert error.startswith(f"{alone}: holds checkpoints of another recipe (it differs in sharded)")


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("dpo", {}, "key 'sharded' has no place in kind 'dpo'; leave it out"),
        ("embed", {}, "key 'sharded' has no place in kind 'embed'; leave it out"),
        ("sft", {"adapter": {}}, "sharded has no place beside an adapter; leave it out"),
    ],
)
def test_what_cannot_lie_in_shards_is_refused(
    kind: str, more: dict[str, object], message: str
) -> None:
    values = {
        "kind": kind,
        "name": "one",
        "start": "model",
        "sharded": True,
        "data": {"files": ["a.jsonl"]},
        "schedule": {"steps": 1},
        **more,
    }
    with pytest.raises(RecipeError) as raised:
        recipe_of(values)
    assert str(raised.value) == message
