"""`kind = "sft"`: replies are learned and nothing else, and the engine gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from fables import RECIPE, Run, one_error, train, write_recipe

from trilobit import LLM, SamplingParams
from trilobit.train.data.bpe import as_hugging_face
from trilobit.train.data.replies import Examples, TrainingReplies, padded
from trilobit.train.export import save_masters
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = (("fox", "grapes"), ("crow", "water"), ("wolf", "crane"), ("hare", "race"))
CONTEXT = 64
SFT = f"""
kind = "sft"
name = "chat"
start = "base"
optimizer = "muon"
log_every = 5
evaluate_every = 20
save_every = 13
[data]
files = ["chat.jsonl"]
held_out_every = 4
window = {CONTEXT}
[schedule]
steps = 60
batch_windows = 6
warmup_steps = 5
stage_1 = [1e-2, 1e-2]
stage_2 = [1e-2, 0.0]
muon_rate = 3
"""


@pytest.fixture(scope="module")
def folder(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, conversations, and the recipe."""
    folder = tmp_path_factory.mktemp("sft")
    longer = RECIPE.replace("embeddings = 32", f"embeddings = {CONTEXT}")
    recipe: Any = load_recipe(write_recipe(folder, longer))
    torch.manual_seed(0)
    tokenizer = as_hugging_face(run.output / "corpus" / "tokenizer.json", CONTEXT)
    save_masters(build_model(recipe, len(tokenizer), bos=0, eos=1), tokenizer, folder / "base")
    _write_conversations(folder)
    (folder / "recipe.toml").write_text(SFT)
    return folder


def _write_conversations(folder: Path) -> None:
    # Every pair stands at a place that is held out, and at others.
    pairs = [PAIRS[(i // 4 + i) % 4] for i in range(16)]
    lines = (
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in pairs
    )
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def chat(folder: Path) -> Path:
    output = folder / "run"
    outcome = train(
        folder / "recipe.toml", output, "--json", "--packed", str(folder / "chat.trilobit")
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["held_out_bits_per_byte"] is None
    assert result["held_out_perplexity"] < 1.5
    return output


@pytest.fixture(scope="module")
def engine(chat: Path) -> LLM:
    return LLM(chat.parent / "chat.trilobit", kv_dtype="f32", threads=1)


def test_the_engine_gives_the_replies_that_were_learned(engine: LLM) -> None:
    for asked, reply in PAIRS:
        said = engine.chat(
            [{"role": "user", "content": asked}], SamplingParams(temperature=0, max_tokens=16)
        )
        assert (said.text, said.finish_reason) == (reply, "stop")


def test_examples_begin_as_the_engine_is_asked_and_only_replies_count(
    chat: Path, engine: LLM
) -> None:
    tokens, learned, places = (
        np.load(chat / "corpus" / f"held_out{kind}.npy") for kind in ("", "_learned", "_places")
    )
    examples = Examples(tokens=tokens, learned=learned, places=places)
    assert len(examples) == 4
    for example, (asked, reply) in zip(
        (examples[i] for i in range(4)), (PAIRS[i] for i in range(4)), strict=True
    ):
        given = engine.chat_ids([{"role": "user", "content": asked}])
        ids, labels = example["input_ids"].tolist(), example["labels"].tolist()
        assert ids[: len(given)] == given
        assert labels[: len(given)] == [-100] * len(given)
        assert labels[len(given) :] == ids[len(given) :]
        assert ids[-1] == 1
        assert engine.decode(ids[len(given) :]) == reply


def _examples_of(start: Path, folder: Path) -> list[tuple[list[int], list[int]]]:
    """Ids, and the places of those that are learned, of a conversation of two replies."""
    said = [*PAIRS[0], *PAIRS[1]]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)
    ]
    folder.mkdir()
    (folder / "chat.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 5)
    shutil.copytree(start, folder / "base")
    if folder.name == "forgetful":
        (folder / "base" / "chat_template.jinja").write_text(
            "{{ messages[-1].content }}{{ eos_token }}"
        )
    (folder / "recipe.toml").write_text(SFT)
    outcome = train(folder / "recipe.toml", folder / "run", "--max-steps", "1")
    assert outcome.code == 0, outcome.err
    tokens, learned, places = (
        np.load(folder / "run" / "corpus" / f"train{kind}.npy")
        for kind in ("", "_learned", "_places")
    )
    assert len(places) % 3 == 0  # lines that are learned
    return [
        (tokens[start:end].tolist(), np.flatnonzero(learned[start:end]).tolist())
        for start, end in places[: len(places) // 3]
    ]


def test_a_conversation_is_one_example_where_all_that_was_said_goes_on(
    folder: Path, engine: LLM, tmp_path: Path
) -> None:
    said = [*PAIRS[0], *PAIRS[1]]
    turns = [{"role": ("user", "assistant")[i % 2], "content": x} for i, x in enumerate(said)]
    first, second = engine.chat_ids(turns[:1]), engine.chat_ids(turns[:3])
    ends = [
        [*given, *engine.encode(reply)[1:], 1]
        for given, reply in ((first, said[1]), (second, said[3]))
    ]
    [(ids, learned)] = _examples_of(folder / "base", tmp_path / "whole")
    assert ids == ends[1]
    assert ids[: len(ends[0])] == ends[0]
    assert learned == [*range(len(first), len(ends[0])), *range(len(second), len(ends[1]))]


def test_a_template_that_leaves_out_what_was_said_has_an_example_for_every_reply(
    folder: Path, tmp_path: Path
) -> None:
    both = _examples_of(folder / "base", tmp_path / "forgetful")
    assert len(both) == 2
    for ids, learned in both:
        assert learned == [*range(learned[0], len(ids))]


def test_stock_transformers_and_the_engine_have_the_same_logits(chat: Path, engine: LLM) -> None:
    ids = engine.chat_ids([{"role": "user", "content": "crow"}])
    theirs = stock.logits(stock.load(chat / "packed"), torch.tensor([ids]))[0].numpy()
    difference = np.abs(engine.logits(ids) - theirs).max(axis=-1)
    # Rounding ties, which stock transformers breaks otherwise: see test_export.py.
    assert (difference <= 1e-4).mean() >= 0.8
    assert difference.max() <= 0.1


def test_it_goes_on_bit_for_bit(folder: Path, chat: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    output.mkdir()
    shutil.copy(chat / "recipe.json", output)
    for name in ("corpus", "checkpoint-52"):
        shutil.copytree(chat / name, output / name)
    outcome = train(folder / "recipe.toml", output)
    assert "going on from checkpoint-52" in outcome.err
    model = Path("model") / "model.safetensors"
    assert (output / model).read_bytes() == (chat / model).read_bytes()


def test_batches_are_padded_where_nothing_looks() -> None:
    learned = np.array([0, 0, 1, 1, 1, 0, 1, 1], dtype=bool)
    places = np.array([[0, 5], [5, 8]])
    examples = Examples(tokens=np.arange(8, dtype=np.uint16), learned=learned, places=places)
    batch = padded([examples[0], examples[1]])
    assert batch["input_ids"].tolist() == [
        [0, 1, 2, 3, 4, *[0] * 27],
        [5, 6, 7, *[0] * 29],
    ]
    assert batch["labels"].tolist() == [
        [-100, -100, 2, 3, 4, *[-100] * 27],
        [-100, 6, 7, *[-100] * 29],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 27, [1] * 3 + [0] * 29]


def test_batches_have_few_lengths() -> None:
    places = np.array([[0, 1 + i] for i in range(100)])
    learned = np.ones(100, dtype=bool)
    examples = Examples(tokens=np.arange(100, dtype=np.uint16), learned=learned, places=places)
    lengths = {padded([examples[i]])["input_ids"].shape[1] for i in range(100)}
    assert lengths == {32, 64, 96, 128}


def test_every_pass_has_every_example_once_and_is_a_function_of_seed_and_place() -> None:
    places = np.array([[i, i + 2] for i in range(7)])
    learned = np.ones(9, dtype=bool)
    examples = Examples(tokens=np.arange(9, dtype=np.uint16), learned=learned, places=places)
    one, two = (TrainingReplies(examples, count=30, seed=3) for _ in range(2))
    firsts = [int(one[i]["input_ids"][0]) for i in range(14)]
    assert sorted(firsts[:7]) == sorted(firsts[7:]) == list(range(7))
    assert firsts[:7] != firsts[7:]
    assert [int(two[i]["input_ids"][0]) for i in (13, 2, 8)] == [firsts[i] for i in (13, 2, 8)]


LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"messages": 3}\n', "line 1: 'messages' is no list of objects with the texts 'role' and"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: 'messages' is no list of objects with"),
        ('{"text": "a"}\n', "line 1 is no JSON object with a 'messages'; mend or remove it"),
        ('\n{"messages": []}\n', "line 2: 'messages' is empty; mend or remove it"),
        (
            '{"messages": [{"role": "human", "content": "a"}]}\n',
            "line 1: the role 'human' is none of system, user, assistant, tool; mend or remove it",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}\n',
            "line 1: 'tool_calls' are not learned; write them into 'content', as the model is to ",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}]}\n',
            "no reply of the assistant is to train on; add some",
        ),
        (
            LINE,
            "no reply of the assistant is to train on; what is there is all held out; add some, or "
            "name another file as data.validation",
        ),
        (
            "\n" + LINE * 2,
            "no reply of the assistant is held out by held_out_every = 4; lower it, or add some",
        ),
        (
            LINE.replace('"b"', f'"{"b " * CONTEXT}"') * 5,
            f"no reply of the assistant is to train on, for all end beyond data.window, {CONTEXT};",
        ),
        (
            LINE.replace('"a"', f'"{"a " * CONTEXT}"') * 5,
            f"no reply of the assistant is to train on, for all end beyond data.window, {CONTEXT};",
        ),
    ],
)
def test_what_is_no_conversation_is_one_line(
    folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    error = one_error(
        train(folder / "recipe.toml", tmp_path / "run", "--data", str(tmp_path / "bad.jsonl"))
    )
    assert error.startswith(f"{tmp_path / 'bad.jsonl'}: {message}")


def test_a_model_to_start_from_is_needed(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SFT.replace('start = "base"\n', ""))
    error = one_error(train(recipe, tmp_path / "run"))
    assert error == f"{recipe}: key 'start' is missing; give the folder of the model that learns"
