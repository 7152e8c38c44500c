"""What the bundled model that talks is trained on: conversations made of stories, by rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
