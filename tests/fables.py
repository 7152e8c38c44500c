"""Eight fables of Aesop, and one ternary model trained on six of them, for several test files."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from trilobit.cli import main

FABLES = (
    "A Crow, half-dead with thirst, came upon a Pitcher which had once been full of water; but "
    "when the Crow put its beak into the mouth of the Pitcher he found that only very little "
    "water was left in it, and that he could not reach far enough down to get at it. He tried, "
    "and he tried, but at last had to give up in despair. Then a thought came to him, and he "
    "took a pebble and dropped it into the Pitcher. Then he took another pebble and dropped it "
    "into the Pitcher. At last, at last, he saw the water mount up near him.",
    "A Fox one day spied a beautiful bunch of ripe grapes hanging from a vine trained along the "
    "branches of a tree. The grapes seemed ready to burst with juice, and the Fox's mouth "
    "watered as he gazed longingly at them. The bunch hung from a high branch, and the Fox had "
    "to jump for it. The first time he jumped he missed it by a long way. So he walked off a "
    "short distance and took a running leap at it, only to fall short once more.",
    'One day a Hare was making fun of a Tortoise for being so slow. "Do you ever get anywhere?" '
    'he asked with a mocking laugh. "Yes," replied the Tortoise, "and I get there sooner than '
    "you think. I'll run you a race and prove it.\" The Hare was much amused at the idea of "
    "running a race with the Tortoise, but for the fun of the thing he agreed.",
    "A Lion lay asleep in the forest, his great head resting on his paws. A timid little Mouse "
    "came upon him unexpectedly, and in her fright and haste to get away, ran across the Lion's "
    "nose. Roused from his nap, the Lion laid his huge paw angrily on the tiny creature to kill "
    'her. "Spare me!" begged the poor Mouse. "Please let me go and some day I will surely repay '
    'you."',
    "The North Wind and the Sun had a quarrel about which of them was the stronger. While they "
    "were disputing with much heat and bluster, a Traveler passed along the road wrapped in a "
    'cloak. "Let us agree," said the Sun, "that he is the stronger who can strip that Traveler '
    'of his cloak." "Very well," growled the North Wind, and at once sent a cold, howling blast '
    "against the Traveler.",
    "A Dog, to whom the butcher had thrown a bone, was hurrying home with his prize as fast as "
    "he could go. As he crossed a narrow footbridge, he happened to look down and saw himself "
    "reflected in the quiet water as if in a mirror. But the greedy Dog thought he saw a real "
    "Dog carrying a bone much bigger than his own.",
    "A Shepherd Boy tended his master's Sheep near a dark forest not far from the village. Soon "
    "he found life in the pasture very dull. All he could do to amuse himself was to talk to "
    "his dog or play on his shepherd's pipe. One day as he sat watching the Sheep and the quiet "
    "forest, and thinking what he would do should he see a Wolf, he thought of a plan.",
    "A Wolf had been feasting too greedily, and a bone had stuck crosswise in his throat. He "
    "could get it neither up nor down, and of course he could not eat a thing. Naturally that "
    "was an awful state of affairs for a greedy Wolf. So away he hurried to the Crane. He was "
    "sure that she, with her long neck and bill, would easily be able to reach the bone.",
)
HELD_OUT = FABLES[::4]
WINDOW = 32

# Intervals that do not divide each other: a checkpoint falls between two lines of the log.
RECIPE = f"""
name = "fables"
log_every = 5
evaluate_every = 40
save_every = 13
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = {WINDOW}
initializer_range = 0.1
[data]
files = ["fables.jsonl"]
held_out_every = 4
vocab_size = 320
window = {WINDOW}
[schedule]
steps = 120
batch_windows = 4
warmup_steps = 10
quantisation_warmup_steps = 10
stage_1 = [3e-2, 2e-2]
stage_2 = [1e-2, 0.0]
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """A recipe, and the fables beside it."""
    lines = (json.dumps({"source": "aesop", "text": fable}) + "\n" for fable in FABLES)
    (folder / "fables.jsonl").write_text("".join(lines), encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def arguments(recipe: Path, output: Path, *more: str) -> list[str]:
    """`train` with one thread: another number may add up in another order."""
    return ["train", str(recipe), "--output", str(output), "--threads", "1", *more]


def train(recipe: Path, output: Path, *more: str) -> Outcome:
    """`trilobit train` with a recipe."""
    return command(*arguments(recipe, output, *more))


def command(*words: str) -> Outcome:
    """`trilobit`, in this process, to save the seconds that torch takes to load."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        mock.patch.object(sys, "argv", ["trilobit", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _as_before(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def one_error(outcome: Outcome) -> str:
    """The line that a failed command told, beside its progress."""
    assert outcome.code == 2
    assert outcome.out == ""
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.err.endswith(f"{error}\n")
    assert "Traceback" not in outcome.err
    return error.removeprefix("error: ")


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Give back what a command takes for its own in a process of its own."""
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, terminate)
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Run:
    """The one finished run: its recipe, its folder, and what it told."""

    recipe: Path
    output: Path
    outcome: Outcome


@functools.cache
def finished_run(folder: Path) -> Run:
    """Train the recipe to its end, once for all test files of a session."""
    folder = folder / "fables"
    folder.mkdir()
    recipe, output = write_recipe(folder), folder / "run"
    outcome = train(recipe, output, "--json", "--packed", str(folder / "fables.trilobit"))
    assert outcome.code == 0, outcome.err
    return Run(recipe=recipe, output=output, outcome=outcome)
