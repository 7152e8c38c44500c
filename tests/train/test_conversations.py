"""What the bundled model that talks is trained on: conversations and preferences, by rule."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts import module_of

from trilobit import Completion
from trilobit.bundled import CHAT

SCRIPT = Path(__file__).parents[2] / "models" / "trilobit-chat-5m" / "conversations.py"
STORY = (
    "Once upon a time, there was a little girl named {name}. {name} had a {thing}. The {thing} was "
    "red. One day, {name} took the {thing} to the park. She met a dog and {name} gave it the "
    "{thing}. The dog was happy. {name} lost the {thing}, but {name} was not sad. In the end, the "
    "dog came back with it, and they played until the sun went down."
)
NAMES, THINGS = ("Lily", "Tom", "Mia", "Sam", "Ana"), ("ball", "kite", "hat", "boat")

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="tests of an installed package")


def made(folder: Path, count: int) -> tuple[bytes, list[list[dict[str, str]]]]:
    stories = folder / "stories.jsonl"
    with stories.open("w") as file:
        for i in range(count):
            text = STORY.format(name=NAMES[i % 5], thing=THINGS[i % 4]) + f" This is number {i}."
            file.write(json.dumps({"source": "tinystories", "text": text}) + "\n")
        file.write(json.dumps({"source": "tales", "text": STORY}) + "\n")
    (folder / "hard.jsonl").write_text(json.dumps({"question": "How far away is the moon?"}) + "\n")
    out = folder / "chat.jsonl"
    command = [sys.executable, SCRIPT, out, stories, "--unknown", folder / "hard.jsonl"]
    subprocess.run(command, check=True, timeout=120)
    lines = out.read_text(encoding="utf-8").splitlines()
    return out.read_bytes(), [json.loads(line)["messages"] for line in lines]


def test_the_same_stories_give_the_same_conversations_of_turns_that_alternate(
    tmp_path: Path,
) -> None:
    first, all_ = made(tmp_path, 120)
    assert made(tmp_path, 120)[0] == first
    assert len(all_) > 120
    for messages in all_:
        roles = [one["role"] for one in messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(one["content"].strip() for one in messages)
    asked = [
        m for messages in all_ for m in messages if m["content"] == "How far away is the moon?"
    ]
    assert asked


def test_stories_that_were_held_out_stand_where_training_holds_out(tmp_path: Path) -> None:
    _, all_ = made(tmp_path, 160)
    for line, messages in enumerate(all_):
        told = [m["content"] for m in messages if "This is number" in m["content"]]
        for text in told:
            number = int(text.rpartition("number ")[2].rstrip("."))
            assert line % 50 == 0 or number % 50, (line, number)
        assert not any("{name}" in m["content"] for m in messages)  # of another source


@pytest.fixture
def preferences() -> Iterator[Any]:
    """The script that judges, as a module."""
    with module_of(SCRIPT.parent, "preferences") as module:
        yield module


def told(text: str, *, ended: bool = True) -> Completion:
    return Completion(
        text=text,
        token_ids=(),
        prompt_tokens=1,
        cached_tokens=0,
        finish_reason="stop" if ended else "length",
        prefill_tokens_per_s=1.0,
        decode_tokens_per_s=1.0,
        seed=0,
    )


def test_a_story_is_worth_what_was_wished_for_and_new_words_and_its_end(preferences: Any) -> None:
    text = STORY.format(name="Mia", thing="kite")

    def worth(story: str, *things: str, ended: bool = True) -> float:
        return float(preferences.judged(told(story, ended=ended), list(things)).worth)

    both = worth(text, "a girl named Mia", "a kite")
    assert both == worth(text, "a dog")  # all of it, too
    assert both > worth(text, "a kite", "a boat") > worth(text, "a boat", "a whale")
    assert both > worth(text, "a girl named Mia", "a kite", ended=False)
    assert both > worth(f"{text} {text}", "a girl named Mia", "a kite")
    assert worth(text.replace("dog", "dogs"), "a dog") == worth(text, "a dog")
    assert worth(text, "a dog") > worth("A dog came.", "a dog")


def test_a_preference_is_for_the_better_of_its_own_stories_and_for_right_answers(
    tmp_path: Path,
) -> None:
    made(tmp_path, 60)
    script = SCRIPT.with_name("preferences.py")
    out = tmp_path / "preferences.jsonl"
    command = [sys.executable, script, CHAT, tmp_path / "stories.jsonl", "--out", out]
    subprocess.run([*command, "--wishes", "12", "--tries", "3"], check=True, timeout=120)
    pairs = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert pairs
    for pair in pairs:
        assert pair["prompt"][-1]["role"] == "user"
        [chosen], [rejected] = pair["chosen"], pair["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert chosen["content"] != rejected["content"]
