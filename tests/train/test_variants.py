"""BitNet a4.8 and v2 in recipes: int8 first, 4 bits at the end, and never taken for b1.58."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stock
from fables import RECIPE, command, one_error, train, write_recipe
from safetensors.torch import load_file
from transformers import BitNetForCausalLM

from trilobit import RecipeError
from trilobit.nn import bit_linears
from trilobit.train.export import save_masters
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe, recipe_of

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
SHORT = RECIPE.replace("steps = 120", f"steps = {STEPS}\nlow_bit_steps = LOW").replace(
    "save_every = 13", "save_every = 12\nKEYS"
)
# Their keys, and steps of 4 bits: the checkpoint of step 12 lies before the switch, and behind it.
VARIANTS = {
    "a4.8": ('activations = "a4.8"', 6),
    "v2": ('activations = "int4"\nhadamard = true', 14),
}


@dataclasses.dataclass(frozen=True)
class Finished:
    name: str
    recipe: Path
    output: Path
    told: str


def _text(name: str) -> str:
    keys, low = VARIANTS[name]
    return SHORT.replace("KEYS", keys).replace("LOW", str(low))


@pytest.fixture(scope="module", params=VARIANTS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = write_recipe(folder, _text(request.param))
    outcome = train(recipe, folder / "run")
    assert outcome.code == 0, outcome.err
    return Finished(request.param, recipe, folder / "run", outcome.out)


def _held_out(output: Path) -> float:
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return next(float(e["held_out_loss"]) for e in reversed(log) if "held_out_loss" in e)


def test_no_packed_form_is_written_and_why_is_one_line(finished: Finished) -> None:
    lacks = {
        "a4.8": "activations = 'a4.8'",
        "v2": "activations = 'int4' and hadamard = true",
    }[finished.name]
    lines = finished.told.splitlines()
    assert lines[-2:] == [
        f"model: {finished.output / 'model'}",
        f"no packed file: the engine does not run {lacks}",
    ]
    assert not (finished.output / "packed").exists()


def test_a_packed_file_of_it_is_refused_before_the_training(
    finished: Finished, tmp_path: Path
) -> None:
    outcome = train(finished.recipe, tmp_path / "run", "--packed", str(tmp_path / "x.trilobit"))
    assert one_error(outcome).startswith("--packed: no packed file: the engine does not run ")
    assert not list(tmp_path.iterdir())


def test_its_masters_are_not_run_and_not_converted(finished: Finished, tmp_path: Path) -> None:
    model = finished.output / "model"
    method = {"a4.8": "bitnet_a4.8", "v2": "bitnet_hadamard_int4"}[finished.name]
    expected = (
        f"{model / 'config.json'}: model_type '{method}', float masters of layers that round "
        "otherwise than BitNet b1.58, is not supported; supported: "
    )
    for words in (
        ("convert", model, tmp_path / "out.trilobit"),
        ("generate", "A", "--model", model),
    ):
        outcome = command(*map(str, words))
        assert outcome.code == 2
        assert outcome.err.removeprefix("error: ").startswith(expected), outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_stock_transformers_does_not_load_it(finished: Finished) -> None:
    _assert_stock_refuses(finished.output / "model")


def _assert_stock_refuses(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        stock.load(folder)
    with stock.not_compiled(), pytest.raises(ValueError, match="has no `quant_method` attribute"):
        BitNetForCausalLM.from_pretrained(folder)


def test_a_run_goes_on_bit_for_bit_across_the_switch(finished: Finished, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(finished.output, again)
    shutil.rmtree(again / "checkpoint-20")
    shutil.rmtree(again / "model")
    outcome = train(finished.recipe, again)
    assert outcome.code == 0, outcome.err
    assert "going on from checkpoint-12" in outcome.err
    assert _held_out(again) == _held_out(finished.output)
    ours, theirs = (
        (folder / "model" / "model.safetensors").read_bytes() for folder in (again, finished.output)
    )
    assert ours == theirs


def test_the_last_step_is_measured_with_its_activations(finished: Finished) -> None:
    recipe: Any = load_recipe(finished.recipe)
    model = build_model(recipe, 320, bos=0, eos=1)
    weights = load_file(finished.output / "model" / "model.safetensors")
    model.load_state_dict(weights, strict=False)
    health = [
        json.loads(line) for line in (finished.output / "health.jsonl").read_text().splitlines()
    ]
    layers = health[-1]["layers"]
    o_proj, q_proj = (layers[f"model.layers.0.self_attn.{n}_proj"]["density"] for n in "oq")
    if finished.name == "a4.8":
        assert o_proj == pytest.approx(0.5, abs=0.01)
    assert q_proj < 0.95  # by int8 some 0.99
    assert [m.hadamard for _, m in bit_linears(model)].count(True) == (
        4 if finished.name == "v2" else 0
    )


def test_before_the_switch_a48_is_b158_exactly(tmp_path: Path) -> None:
    plain = SHORT.replace("KEYS", "").replace("low_bit_steps = LOW", "")
    for name, text in (("plain", plain), ("a4.8", _text("a4.8"))):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, text)
        assert train(recipe, tmp_path / name / "run").code == 0
    states = [tmp_path / name / "run" for name in ("plain", "a4.8")]
    for step, same in ((12, True), (20, False)):
        ours, theirs = (
            (run / f"checkpoint-{step}" / "model.safetensors").read_bytes() for run in states
        )
        assert (ours == theirs) == same
    config = json.loads((states[1] / "checkpoint-12" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == config["model_type"] == "bitnet"


def test_a_checkpoint_of_other_activations_is_another_run(
    finished: Finished, tmp_path: Path
) -> None:
    text = _text(finished.name).replace(VARIANTS[finished.name][0], 'activations = "int4"')
    if finished.name == "v2":
        text = text.replace("int4", "a4.8")
    differs = "activations" if finished.name == "a4.8" else "activations, hadamard"
    error = one_error(train(write_recipe(tmp_path, text), finished.output))
    assert f"(it differs in {differs})" in error


def _recipe(schedule: dict[str, Any] | None = None, **keys: Any) -> Any:
    model = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    schedule = {"steps": 100, **(schedule or {})}
    data = {"files": ["a.txt"], **keys.pop("data", {})}
    return recipe_of({"name": "a", "model": model, "data": data, "schedule": schedule, **keys})


def test_low_bits_begin_with_the_last_twentieth_or_where_the_recipe_says() -> None:
    recipe = _recipe(activations="a4.8")
    assert [recipe.activations_at(step) for step in (0, 94, 95, 99)] == [
        "int8",
        "int8",
        "a4.8",
        "a4.8",
    ]
    recipe = _recipe({"low_bit_steps": 100}, activations="int4")
    assert recipe.activations_at(0) == "int4"
    assert {_recipe(hadamard=True).activations_at(step) for step in (0, 99)} == {"int8"}


@pytest.mark.parametrize(
    ("schedule", "keys", "message"),
    [
        ({}, {"activations": "a4"}, "'activations' is 'a4'; one of int8, int4, a4.8"),
        ({}, {"weights": "float", "activations": "int4"}, "whose layers round nothing"),
        ({}, {"weights": "float", "hadamard": True}, "whose layers round nothing"),
        ({}, {"activations": "a4.8", "hadamard": True}, "leave hadamard out, or take 'int4'"),
        ({"low_bit_steps": 5}, {}, "has no place where activations is 'int8'"),
        ({"low_bit_steps": 5}, {"hadamard": True}, "has no place where activations is 'int8'"),
        ({"low_bit_steps": 0}, {"activations": "int4"}, "low_bit_steps is 0; it must be from 1"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    schedule: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _recipe(schedule, **keys)


def test_other_kinds_have_no_low_bits() -> None:
    values = {"kind": "sft", "name": "a", "start": "b", "data": {"files": ["a.jsonl"]}}
    with pytest.raises(RecipeError, match="low_bit_steps has no place"):
        recipe_of({**values, "schedule": {"steps": 100, "low_bit_steps": 5}})
    with pytest.raises(RecipeError, match="unknown key 'activations'"):
        recipe_of({**values, "schedule": {"steps": 100}, "activations": "int4"})


def test_masters_of_sign_weights_are_no_model_of_stock_transformers(tmp_path: Path) -> None:
    save_masters(build_model(_recipe(weights="sign"), 320, bos=0, eos=1), None, tmp_path)
    _assert_stock_refuses(tmp_path)


def test_a_checkpoint_goes_on_in_4_bits(tmp_path: Path) -> None:
    plain = SHORT.replace("KEYS", "").replace("low_bit_steps = LOW", "")
    assert train(write_recipe(tmp_path, plain), tmp_path / "first").code == 0
    shape = RECIPE[RECIPE.index("[model]") : RECIPE.index("[data]")]
    text = _text("v2").replace(shape, "").replace("KEYS", "")
    start = f'start = "{tmp_path / "first" / "model"}"\n'
    outcome = train(write_recipe(tmp_path, start + text), tmp_path / "second")
    assert outcome.code == 0, outcome.err
    assert "hadamard" in (tmp_path / "second" / "model" / "config.json").read_text()
