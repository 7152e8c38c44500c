"""`[adapter]`: an adapter learns beside a model that stays as it is, and runs where peft does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
from fables import HELD_OUT, WINDOW, command, finished_run, one_error, train, write_recipe
from peft import PeftModel

from trilobit import LLM, FormatError
from trilobit.conversion import convert

# peft 0.21 asks transformers 5.23 for a property by its older name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.usefixtures("one_thread"),
]

REST = f"""
[data]
files = ["new.jsonl"]
held_out_every = 4
window = {WINDOW}
[schedule]
steps = 26
batch_windows = 4
warmup_steps = 3
stage_1 = [1e-2, 1e-2]
stage_2 = [1e-2, 0.0]
"""
ADAPTER = "[adapter]\nrank = 6\nalpha = 12\ndropout = 0.1\n"
LORA = (
    'name = "lora"\nstart = "base.trilobit"\nlog_every = 2\nevaluate_every = 13\nsave_every = 13\n'
    + ADAPTER
    + REST
)
REPLIES = """
kind = "sft"
name = "replies"
start = "base.trilobit"
log_every = 1
[adapter]
rank = 4
targets = ["q_proj", "v_proj"]
[data]
files = ["chat.jsonl"]
held_out_every = 4
window = 32
[schedule]
steps = 8
batch_windows = 4
warmup_steps = 1
stage_1 = [1e-2, 1e-2]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in every form, and an adapter of it that has read the fables that it has not."""
    folder = tmp_path_factory.mktemp("lora")
    run = finished_run(tmp_path_factory.getbasetemp())
    shutil.copy(run.recipe.parent / "fables.trilobit", folder / "base.trilobit")
    for form in ("model", "packed"):
        shutil.copytree(run.output / form, folder / form)
    lines = (json.dumps({"text": fable}) + "\n" for fable in HELD_OUT * 4)
    (folder / "new.jsonl").write_text("".join(lines))
    (folder / "lora.toml").write_text(LORA)
    outcome = train(folder / "lora.toml", folder / "lora", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["model"] == str(folder / "lora" / "adapter")
    messages = [{"role": "user", "content": "Fox?"}, {"role": "assistant", "content": "Grapes."}]
    (folder / "chat.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 8)
    said = {
        "prompt": messages[:1],
        "chosen": messages[1:],
        "rejected": [{"role": "assistant", "content": "Water."}],
    }
    (folder / "pairs.jsonl").write_text((json.dumps(said) + "\n") * 8)
    return folder


def test_its_loss_falls_and_the_engine_computes_what_was_learned(folder: Path) -> None:
    lines = (folder / "lora" / "log.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.15
    read = HELD_OUT[0][:40]
    packed = folder / "base.trilobit"
    with LLM(packed) as base, LLM(packed, adapter=folder / "lora" / "adapter") as adapted:
        assert adapted.score(read).total > base.score(read).total + 2


def test_stock_peft_loads_it_and_computes_the_engines_logits(folder: Path) -> None:
    adapter, packed = folder / "lora" / "adapter", folder / "base.trilobit"
    with LLM(packed, adapter=adapter, kv_dtype="f32") as llm:
        ids = llm.encode(HELD_OUT[1])[:32]
        ours = llm.logits(ids)
    with stock.not_compiled():
        model = stock.load(folder / "packed")
        model = PeftModel.from_pretrained(model, adapter).eval()
    theirs = stock.logits(model, torch.tensor([ids]))[0].numpy()
    # Rarely an input lies so near the middle of two codes that rounding decides otherwise.
    far = np.abs(ours - theirs).max(axis=1) > 1e-3 * np.abs(theirs).max()
    assert far.mean() <= 0.1


def test_the_folder_holds_an_adapter_and_no_model(folder: Path) -> None:
    run = folder / "lora"
    assert not (run / "model").exists()
    assert not (run / "packed").exists()
    names = {path.name for path in (run / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (6, 12, 0.1)
    assert settings["base_model_name_or_path"] == str(folder / "base.trilobit")


def test_a_resumed_adapter_is_that_of_an_unbroken_run(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(folder / "lora", again)
    shutil.rmtree(again / "checkpoint-26")
    shutil.rmtree(again / "adapter")
    outcome = train(folder / "lora.toml", again)
    assert outcome.code == 0, outcome.err
    assert "going on from checkpoint-13" in outcome.err
    weights = "adapter/adapter_model.safetensors"
    assert (again / weights).read_bytes() == (folder / "lora" / weights).read_bytes()


def test_masters_and_codes_are_the_same_base(folder: Path, tmp_path: Path) -> None:
    found = []
    for form in ("model", "packed"):
        recipe = folder / f"{form}.toml"
        recipe.write_text(LORA.replace("base.trilobit", form))
        outcome = train(recipe, tmp_path / form, "--max-steps", "2")
        assert outcome.code == 0, outcome.err
        found.append((tmp_path / form / "adapter" / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_an_adapter_is_refused_beside_another_model(folder: Path, tmp_path: Path) -> None:
    outcome = train(write_recipe(tmp_path), tmp_path / "other", "--max-steps", "11")
    assert outcome.code == 0, outcome.err
    convert(tmp_path / "other" / "packed", tmp_path / "other.trilobit")
    with pytest.raises(FormatError, match="was trained on another model; give the one that"):
        LLM(tmp_path / "other.trilobit", adapter=folder / "lora" / "adapter")


def test_it_merges_into_masters_and_says_that_they_are_rounded_anew(
    folder: Path, tmp_path: Path
) -> None:
    out, base = tmp_path / "merged.trilobit", folder / "model"
    outcome = command("convert", str(base), str(out), "--adapter", str(folder / "lora" / "adapter"))
    assert outcome.code == 0, outcome.err
    assert "rounded anew" in outcome.err
    read = HELD_OUT[0][:40]
    with LLM(folder / "base.trilobit") as plain, LLM(out) as merged:
        assert merged.score(read).total != plain.score(read).total


def test_replies_and_preferences_are_learned_by_adapters(folder: Path, tmp_path: Path) -> None:
    (folder / "replies.toml").write_text(REPLIES)
    outcome = train(folder / "replies.toml", tmp_path / "replies")
    assert outcome.code == 0, outcome.err
    with LLM(folder / "base.trilobit", adapter=tmp_path / "replies" / "adapter") as llm:
        assert llm.has_chat_template  # the model itself has none
        assert llm.decode(llm.chat_ids([{"role": "user", "content": "Fox?"}])).startswith("User:")
    dpo = REPLIES.replace('"sft"', '"dpo"').replace("chat.jsonl", "pairs.jsonl")
    (folder / "preferences.toml").write_text(dpo)
    outcome = train(folder / "preferences.toml", tmp_path / "preferences")
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "preferences" / "log.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert losses[-1] < np.log(2)  # that of guessing, where it begins


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("rank = 6", "rank = 0", "adapter.rank is 0; it must be from 1 to 4096"),
        ("rank = 6", 'targets = ["lm_head"]', "adapter.targets names 'lm_head'"),
        ("rank = 6", "targets = []", "adapter.targets is empty"),
        ("dropout = 0.1", "dropout = 1.0", "adapter.dropout is 1.0"),
        ("dropout = 0.1", "drop = 0.1", "unknown key 'adapter.drop'"),
        ('name = "lora"', 'name = "lora"\nweights = "sign"', "weights is 'sign'"),
        ('name = "lora"', 'name = "lora"\ncompile = true', "compile has no place"),
        ('name = "lora"', 'name = "lora"\nkind = "embed"', "has no place in kind 'embed'"),
        (
            'start = "base.trilobit"',
            "",
            "key 'start' is missing; give the model that the adapter is for",
        ),
        ("base.trilobit", "nothing.trilobit", "nothing.trilobit: missing"),
    ],
)
def test_what_an_adapter_cannot_be_is_one_line(
    old: str, new: str, reason: str, folder: Path, tmp_path: Path
) -> None:
    text = LORA.replace(old, new)
    if "embed" in new:
        text = text.replace("vocab_size = 320\n", "")
    (folder / "wrong.toml").write_text(text)
    outcome = train(folder / "wrong.toml", tmp_path / "run")
    assert reason in one_error(outcome)
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_adapter_has_no_packed_file(folder: Path, tmp_path: Path) -> None:
    more = ("--packed", str(tmp_path / "x.trilobit"))
    assert "an adapter has no packed file" in one_error(
        train(folder / "lora.toml", tmp_path / "run", *more)
    )
