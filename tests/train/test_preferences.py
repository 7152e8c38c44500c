"""`kind = "dpo"`: the better reply becomes the likelier one."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fables import Run, one_error, train

from trilobit import LLM
from trilobit.train.objectives.preferences import Preferred, log_probability
from trilobit.train.recipes import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

# Asked, the better reply, the worse one. Every one is held out once, and there three times more.
PREFERENCES = (
    ("fox", "grapes", "bone"),
    ("crow", "water", "cloak"),
    ("wolf", "crane", "mouse"),
    ("hare", "race", "sheep"),
)
DPO = """
kind = "dpo"
name = "chat"
start = "base"
beta = 0.2
log_every = 5
evaluate_every = 15
save_every = 13
[data]
files = ["preferences.jsonl"]
held_out_every = 4
window = 32
[schedule]
steps = 30
batch_windows = 4
accumulate_steps = 2
warmup_steps = 5
stage_1 = [2e-3, 2e-3]
stage_2 = [2e-3, 0.0]
"""


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _lines(*, prompts: bool) -> str:
    lines = []
    for i in range(16):
        asked, better, worse = PREFERENCES[(i // 4 + i) % 4]
        before = [_said("user", asked)]
        replies = {"chosen": [_said("assistant", better)], "rejected": [_said("assistant", worse)]}
        if prompts:
            line = {"prompt": before, **replies}
        else:
            line = {key: [*before, *reply] for key, reply in replies.items()}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    shutil.copytree(run.output / "model", folder / "base")
    (folder / "preferences.jsonl").write_text(_lines(prompts=True))
    (folder / "recipe.toml").write_text(DPO)
    return folder


@pytest.fixture(scope="module")
def tuned(folder: Path) -> Path:
    output = folder / "run"
    packed = ("--packed", str(folder / "tuned.trilobit"))
    outcome = train(folder / "recipe.toml", output, "--json", *packed)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["held_out_perplexity"] is None
    assert result["held_out_accuracy"] == 1.0
    assert result["held_out_loss"] < 0.2
    return output


def test_preferences_are_counted_as_they_are_written(folder: Path, tmp_path: Path) -> None:
    recipe: Any = load_recipe(folder / "recipe.toml")
    told = Preferred(recipe).prepare(tmp_path / "corpus", begun=False)
    assert told == "16 preferences: 12 to train on, 4 held out"


def _margins(model: Path, template_of: Path | None = None) -> list[float]:
    """By how much the better reply is likelier than the worse one, in nats."""
    engine = LLM(model, kv_dtype="f32", threads=1)
    chats = LLM(template_of, threads=1) if template_of else engine
    margins = []
    for asked, better, worse in PREFERENCES:
        given = chats.chat_ids([_said("user", asked)])
        scores = []
        for reply in (better, worse):
            ids = [*given, *engine.encode(reply), 1]
            scores.append(float(engine.score(ids).logprobs[len(given) - 1 :].sum()))
        margins.append(scores[0] - scores[1])
    return margins


def test_the_engine_prefers_what_was_chosen(run: Run, folder: Path, tuned: Path) -> None:
    after = folder / "tuned.trilobit"
    before = _margins(run.recipe.parent / "fables.trilobit", template_of=after)
    for was, now in zip(before, _margins(after), strict=True):
        assert now > was + 5


def test_a_run_that_knows_no_better_than_its_start_has_the_loss_of_guessing(tuned: Path) -> None:
    log = [json.loads(line) for line in (tuned / "log.jsonl").read_text().splitlines()]
    held_out = [entry["held_out_loss"] for entry in log if "held_out_loss" in entry]
    assert len(held_out) == 2
    assert held_out[1] < held_out[0] < 0.6931
    assert not any("held_out_perplexity" in entry for entry in log)
    assert log[0]["loss"] < 0.7  # parts of a step are no sums


def test_it_goes_on_bit_for_bit(folder: Path, tuned: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    shutil.copy(tuned / "recipe.json", output)
    for name in ("corpus", "checkpoint-26"):
        shutil.copytree(tuned / name, output / name)
    outcome = train(folder / "recipe.toml", output)
    assert "going on from checkpoint-26" in outcome.err
    model = Path("model") / "model.safetensors"
    assert (output / model).read_bytes() == (tuned / model).read_bytes()


def test_what_two_conversations_have_in_common_is_the_prompt(
    folder: Path, tuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole.jsonl").write_text(_lines(prompts=False))
    data = ("--data", str(tmp_path / "whole.jsonl"))
    outcome = train(folder / "recipe.toml", tmp_path / "run", "--max-steps", "1", *data)
    assert outcome.code == 0, outcome.err
    for part, kind in product(("train", "held_out"), ("", "_learned", "_places")):
        name = f"{part}{kind}.npy"
        corpus = (output / "corpus" / name for output in (tuned, tmp_path / "run"))
        mine, theirs = (path.read_bytes() for path in corpus)
        assert mine == theirs


def test_a_replys_probability_is_the_product_of_its_tokens() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]))
    labels = torch.tensor([[-100, 1, 2]])
    assert log_probability(logits, labels).exp().tolist() == pytest.approx([0.25 * 0.6])
    assert log_probability(logits, torch.tensor([[-100, -100, 2]])).exp() == pytest.approx(0.6)


USER, REPLY = _said("user", "a"), _said("assistant", "b")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": [REPLY]}, "'rejected' is no list of objects with the texts 'role' and"),
        ({"rejected": [REPLY]}, "is no JSON object with a 'chosen'; mend or remove it"),
        ({"chosen": "b", "rejected": "c"}, "'chosen' is no list of objects with the texts"),
        ({"chosen": [REPLY], "rejected": [REPLY]}, "'chosen' and 'rejected' must be two different"),
        (
            {"prompt": [USER], "chosen": [REPLY], "rejected": [REPLY]},
            "'chosen' and 'rejected' must be two different replies of the assistant to the same",
        ),
        (
            {"prompt": [USER], "chosen": [], "rejected": []},
            "'chosen' is empty; mend or remove it",
        ),
        (
            {"chosen": [USER, REPLY], "rejected": [_said("user", "z"), REPLY]},
            "'chosen' and 'rejected' must be two different replies of the assistant to the same",
        ),
    ],
)
def test_what_is_no_preference_is_one_line(
    folder: Path, tmp_path: Path, record: Any, message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(record) + "\n")
    error = one_error(train(folder / "recipe.toml", tmp_path / "run", "--data", str(bad)))
    assert error.startswith(f"{bad}: line 1")
    assert message in error


def test_a_beta_that_cannot_be_is_one_line(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(DPO.replace("beta = 0.2", "beta = 0"))
    assert one_error(train(recipe, tmp_path / "run")).startswith(f"{recipe}: beta is 0.0; it must")
