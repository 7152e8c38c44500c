"""A recipe is read whole or refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from trilobit.errors import RecipeError
from trilobit.train.checkpoint import claim
from trilobit.train.recipes import (
    Data,
    Distill,
    Ingredient,
    Lora,
    Pretrain,
    Schedule,
    Shape,
    load_recipe,
    recipe_of,
)

TOML = """
name = "tiny"
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[data]
files = ["a.txt", "b.jsonl.xz"]
[schedule]
steps = 20
stage_1 = [1, 5e-4]
"""
YAML = """
name: tiny
model:
  hidden_size: 32
  intermediate_size: 64
  num_hidden_layers: 2
  num_attention_heads: 4
  num_key_value_heads: 2
data:
  files: [a.txt, b.jsonl.xz]
schedule:
  steps: 20
  stage_1: [1, 5.0e-4]
"""


def _write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _error(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_checkpoints_of_another_kind_are_told_by_their_kind(tmp_path: Path) -> None:
    values = {"name": "tiny", "start": "base", "data": {"files": ["a"]}, "schedule": {"steps": 9}}
    theirs, ours = (recipe_of(values | {"kind": kind}) for kind in ("dpo", "pretrain"))
    (tmp_path / "recipe.json").write_text(json.dumps(theirs.as_dict()))
    (tmp_path / "checkpoint-5").mkdir()
    claim(theirs, tmp_path, fresh=False)
    with pytest.raises(
        RecipeError, match='with kind = "dpo", and this one is of kind = "pretrain"'
    ):
        claim(ours, tmp_path, fresh=False)


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        (
            "",
            "beta = 0.1",
            "unknown key 'beta' in a recipe without a kind, taken for one of 'pretrain'; "
            'kind = "dpo" has it',
        ),
        ('kind = "sft"', "", "unknown key 'model' in a recipe of kind 'sft'; kind = \"pretrain\""),
        ("", "nonsense = 1", "unknown key 'nonsense'; known here: name, "),
    ],
)
def test_a_key_of_another_kind_is_told_with_that_kind(
    tmp_path: Path, kind: str, extra: str, message: str
) -> None:
    text = f"{kind}\n{extra}\n{TOML}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(_write(tmp_path, text))
    assert message in str(caught.value)


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, TOML))
    assert recipe == load_recipe(_write(tmp_path, YAML, "recipe.yaml"))
    assert recipe == load_recipe(_write(tmp_path, YAML, "recipe.yml"))
    assert recipe.schedule.stage_1 == (1.0, 0.0005)
    assert recipe.weights == "ternary"
    assert recipe.data_files() == [tmp_path / "a.txt", tmp_path / "b.jsonl.xz"]


def test_the_manual_explains_every_key_and_its_recipe_is_one(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", manual, flags=re.DOTALL)
    recipe = load_recipe(_write(tmp_path, example))
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", manual, flags=re.MULTILINE)
    tables = (Pretrain, Shape, Data, Ingredient, Schedule)
    keys = [f for table in tables for f in dataclasses.fields(table)]
    keys += [f for f in dataclasses.fields(Distill) if f.name in Distill.__annotations__]
    keys += dataclasses.fields(Lora)
    named = [f for f in keys if f.name not in ("model", "data", "schedule", "adapter", "folder")]
    assert rows.pop(0) == ("kind", '`"pretrain"`')
    assert [name for name, _ in rows] == [f.name for f in named]
    for (_, default), f in zip(rows, named, strict=True):
        if f.default not in (dataclasses.MISSING, None, ()):
            value = f.default if not isinstance(f.default, tuple) else list(f.default)
            assert yaml.safe_load(_with_points(default.strip("`"))) == value, f.name
    assert recipe.name == "stories"


def _with_points(text: str) -> str:
    """`1e-3` as YAML wants it: 1.0e-3."""
    return re.sub(r"(?<![\d.])(\d+)e", r"\1.0e", text)


def test_a_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, TOML))
    values = json.loads(json.dumps(recipe.as_dict()))
    assert "folder" not in values
    assert recipe_of(values, tmp_path) == recipe


def test_keys_that_a_later_version_adds_have_their_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, TOML))
    values = json.loads(json.dumps(recipe.as_dict()))
    del values["precision"], values["schedule"]["accumulate_steps"]
    assert recipe_of(values, tmp_path) == recipe


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("steps = 20", "steps = 20\nstep = 3", "unknown key 'schedule.step'; known here: steps, "),
        ('name = "tiny"', 'name = "tiny"\nfolder = "x"', "unknown key 'folder'; known here: name,"),
        ("steps = 20", "", "key 'schedule.steps' is missing"),
        ("steps = 20", 'steps = "20"', "'schedule.steps' is '20'; it must be a whole number"),
        ("steps = 20", "steps = true", "'schedule.steps' is True; it must be a whole number"),
        ("steps = 20", "steps = 2.5", "'schedule.steps' is 2.5; it must be a whole number"),
        ("steps = 20", "steps = 0", "schedule.steps, batch_windows and accumulate_steps must be"),
        ("[1, 5e-4]", "[1]", "'schedule.stage_1' must be a list of 2 values"),
        ("[1, 5e-4]", '[1, "x"]', "'schedule.stage_1' is 'x'; it must be a number"),
        ("[1, 5e-4]", "[-1, 0]", "schedule.stage_1 is -1.0, 0.0; learning rates above 0"),
        ("[1, 5e-4]", "[nan, 0]", "schedule.stage_1 is nan, 0.0; learning rates above 0"),
        ("steps = 20", "steps = 20\nweight_decay = -1", "schedule.weight_decay is -1.0; it must"),
        ("steps = 20", "steps = 20\nmax_grad_norm = nan", "schedule.max_grad_norm is nan; it must"),
        ("steps = 20", "steps = 20\nmuon_rate = 0", "schedule.muon_rate is 0.0; it must be above"),
        ("steps = 20", "steps = 20\nstage_2_steps = -1", "schedule.stage_2_steps is -1; it must"),
        ("steps = 20", "steps = 20\nstage_2_weight_decay = -1", "schedule.stage_2_weight_decay is"),
        ("steps = 20", "steps = 20\nwarmup_steps = -1", "schedule.warmup_steps and quantisation"),
        (
            "steps = 20",
            "steps = 20\nquantisation_warmup_steps = 20",
            "schedule.quantisation_warmup",
        ),
        ("steps = 20", "steps = 20\naccumulate_steps = 3", "schedule.batch_windows 8 is not a mul"),
        (
            "steps = 20",
            'steps = 20\ndecay = "step"',
            "'schedule.decay' is 'step'; one of linear, c",
        ),
        (
            "hidden_size = 32",
            "hidden_size = 30",
            "model.hidden_size 30 is not a multiple of num_att",
        ),
        ("hidden_size = 32", "hidden_size = 12", "hidden_size / num_attention_heads must be even"),
        ("hidden_size = 32", "hidden_size = -32", "model.hidden_size is -32; it must be above 0"),
        (
            "hidden_size = 32",
            "hidden_size = 32\nrope_theta = nan",
            "model.rope_theta is nan; it mu",
        ),
        (
            "_size = 64",
            "_size = 66",
            "model.hidden_size and intermediate_size must be multiples of",
        ),
        (
            "num_attention_heads = 4\nnum_key_value_heads = 2",
            "num_attention_heads = 16\nnum_key_value_heads = 1",
            "model.num_key_value_heads 1 of 2 make 2 rows; the packed form needs a multiple of 4",
        ),
        ("value_heads = 2", "value_heads = 3", "model.num_attention_heads 4 is not a multiple of"),
        (
            "[data]",
            "[data]\nwindow = 2000",
            "data.window is 2000, longer than the model's context:",
        ),
        ("[data]", "[data]\nwindow = 1", "data.window is 1; at least 2"),
        ("[data]", "[data]\nshort_window = 300", "data.short_window is 300; it must be from 2 to"),
        ("[data]", "[data]\nshort_window = 100", "data.short_window is 100, which does not divi"),
        ("[data]", "[data]\nheld_out_every = 1", "data.held_out_every is 1; at least 2"),
        ("[data]", "[data]\nvocab_size = 256", "data.vocab_size is 256; 256 bytes and the special"),
        ("[data]", "[data]\nvocab_size = 1100000", "data.vocab_size is 1100000; at most 1048576"),
        ('["a.txt", "b.jsonl.xz"]', '"a.txt"', "'data.files' must be a list"),
        ("[data]", '[data]\nsource = "a"', "data.source is 'a', and 'a.txt' is plain text, with"),
        ("[data]", '[data]\nvalidation = "a.txt"', "data.validation is 'a.txt', which is among"),
        ('["a.txt", "b.jsonl.xz"]', "[]", "data.files is empty; name at least one text file"),
        ("[data]", "[data]\nsource = 3", "'data.source' is 3; it must be a text"),
        ('"tiny"', '"tiny"\nkind = "sft2"', "kind is 'sft2'; one of pretrain"),
        ('"tiny"', '"tiny"\nkind = 3', "kind is 3; one of pretrain"),
        ('"tiny"', '"tiny"\nstart = "x"', "key 'model' and 'start' are both given; give either"),
        ('"tiny"', '"../x"', "name is '../x'; a letter or digit, then"),
        ('"tiny"', '"tiny"\nweights = "int4"', "'weights' is 'int4'; one of ternary, sign, float"),
        ('"tiny"', '"tiny"\nprecision = "fp8"', "'precision' is 'fp8'; one of float32, bf16"),
        ('"tiny"', '"tiny"\noptimizer = "sgd"', "'optimizer' is 'sgd'; one of adamw, muon"),
        ('"tiny"', '"tiny"\ncompile = 1', "'compile' is 1; it must be true or false"),
        ('"tiny"', '"tiny"\nseed = -1', "seed is -1; it must be from 0 to 4294967295"),
        ('"tiny"', '"tiny"\nsave_every = 0', "log_every, evaluate_every and save_every must be at"),
        ('name = "tiny"', 'name = "tiny"\ndata = 3\n', "is not TOML: "),
        ('name = "tiny"', "name = ", "is not TOML: "),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path: Path, line: str, instead: str, message: str) -> None:
    assert TOML.count(line) == 1
    assert _error(_write(tmp_path, TOML.replace(line, instead))).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: }", "is not YAML: "),
        ("- 1", "holds no keys; see docs/train.md for a recipe"),
        ("", "holds no keys; see docs/train.md for a recipe"),
        (YAML.replace("  steps: 20", "  steps: 20\n  steps: 30"), "line 12: a key is given twice"),
        (YAML.replace("tiny", "&a tiny") + "weights: *a\n", "line 14 has the alias *a; write its"),
        ("1: 2", "unknown key '1'; known here: name, "),
        (YAML.replace("data:", "data: 3\nx:"), "unknown key 'x'; known here: "),
        (
            YAML.split("data:")[0] + "data: 3\nschedule: {steps: 1}",
            "'data' must be a table of keys",
        ),
        (YAML.replace("steps: 20", "steps: 1e3"), "'schedule.steps' is '1e3'; it must be a whole"),
        (
            YAML.replace("5.0e-4", "5e-4"),
            "'schedule.stage_1' is '5e-4'; it must be a number (1e-3 needs",
        ),
    ],
)
def test_a_wrong_yaml_recipe_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert _error(_write(tmp_path, text, "recipe.yaml")).startswith(message)


def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path) -> None:
    assert _error(tmp_path / "missing.toml") == ("cannot read the recipe (no such file)")
    assert _error(_write(tmp_path, TOML, "recipe.ini")) == (
        "a recipe's name ends in .toml, .yaml or .yml"
    )
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert _error(binary) == "the recipe is not UTF-8 text"
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    assert _error(folder).startswith("cannot read the recipe (")
