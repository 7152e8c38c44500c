"""`trilobit report`: a page that holds what the commands measure, and nothing from elsewhere."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import tiny_config
from program import error_of, result, trilobit

from trilobit.bundled import DEFAULT
from trilobit.cli import cli
from trilobit.cli.report import command
from trilobit.cli.report.page import page
from trilobit.cli.report.plot import Line, joules, lines, number
from trilobit.conversion import convert
from trilobit.synth import synth

STORY = "Once upon a time there was a dog. The dog had a red ball, and it was happy.\n"
QUICK = ("--runs", "1", "--generate", "2", "--threads", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of the bundled model and of one with a short context and no tokenizer."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "<story>.txt").write_text(STORY * 20)
    synth(tiny_config(max_position_embeddings=70), folder / "checkpoint", seed=2)
    convert(folder / "checkpoint", folder / "a & b.trilobit")
    words = ("report", DEFAULT, folder / "a & b.trilobit", "--text", folder / "<story>.txt")
    done = trilobit(*words, *QUICK, "--longest", 90, "--out", folder / "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith(f"report: {folder}/page.html, numbers: {folder}/page.json\n")
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "page.json").read_text(encoding="utf-8"))
    return found


class _Page(HTMLParser):
    """Its text, and whether all that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_the_numbers_and_asks_for_nothing(
    folder: Path, told: dict[str, Any]
) -> None:
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert text == page(told, "page.json")
    read = _Page(text)
    assert read.open == []
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import|<story>", text)
    assert "<story>.txt" in read.text
    assert "a & b" in read.text
    for model in told["models"]:
        speed = model["speed"]
        for value in (speed["decode_tokens_per_s"], speed["prefill_tokens_per_s"]):
            assert f"{number(value)} tokens/s" in read.text
    # Four of tokens a second, -1/0/+1 of two models, two of activations; a bar of bytes, of memory.
    assert text.count("<svg viewBox") == 8
    assert text.count("<svg class='bar'") == 4


def test_the_numbers_are_those_of_the_commands(folder: Path, told: dict[str, Any]) -> None:
    assert told["tasks"] == []
    assert [model["tasks"] for model in told["models"]] == [None, None]
    ours, other = told["models"]
    info = result("info", DEFAULT)
    del info["damage"]
    assert ours["info"] == info
    words = ("--mode", "sliding", "--window", 512)
    found = result("perplexity", DEFAULT, folder / "<story>.txt", *words)
    assert {"model": found["model"], **ours["perplexity"]} == found
    assert other["perplexity"] is None
    for model in told["models"]:
        assert [one["threads"] for one in model["by_threads"]] == [1, 2]
        assert model["speed"]["prompt_tokens"] == 68  # what the shorter context has room for
        assert model["speed"] in model["by_threads"]
        assert model["speed"] in model["by_context"]
        layers = model["info"]["config"]["num_hidden_layers"]
        assert len(model["shares"]) == layers
        assert all(sum(shares) == pytest.approx(1) for shares in model["shares"])
        assert len(model["activity"]) == layers
    assert [one["prompt_tokens"] for one in ours["by_context"]] == [68, 90]
    assert [one["prompt_tokens"] for one in other["by_context"]] == [68]
    assert ours["activity_of"] == "text"
    assert other["activity_of"] == "random tokens"


def test_what_was_not_measured_says_so(told: dict[str, Any]) -> None:
    assert "b has no tokenizer to read a text with" in _Page(page(told, "x.json")).text
    bare = copy.deepcopy(told)
    bare["texts"] = []
    for model in bare["models"]:
        model |= {"perplexity": None, "activity": None, "activity_of": None}
        model["speed"]["peak_rss_mb"] = 0.0
        model["speed"]["energy"]["idle_watts"] = None
        model["speed"]["energy"]["source"] = "no counter here"
        for phase in ("prefill", "decode"):
            model["speed"]["energy"][phase] |= {"measured": None, "above_idle": None}
    text = _Page(page(bare, "x.json")).text
    assert "Not measured: give a text with --text FILE" in text
    assert "The peak is not measured" in text
    assert "Not measured: no counter here" in text
    assert "activations are not measured; only relu² closes gates" in text
    assert "Not measured: the tasks of the papers' tables" in text
    assert "--tasks arc_easy,hellaswag --limit 200" in text


def test_tasks_stand_beside_chance_and_models_that_read_none_say_so(told: dict[str, Any]) -> None:
    asked = copy.deepcopy(told)
    score = {"task": "<arc>", "metric": "acc", "value": 0.31254, "standard_error": 0.032}
    score |= {"questions": 200, "shots": 0, "chance": 0.25}
    free = {**score, "task": "free", "value": 0.0, "standard_error": None, "chance": None}
    asked["models"][0]["tasks"] = [score, {**free, "shots": 5}]
    text = _Page(page(asked, "x.json")).text
    assert "<arc>, acc 200 questions, chance 0.250.3125 ± 0.032not measured" in text
    assert "free, acc 200 questions, 5 examples before each0not measured" in text
    assert "b has no tokenizer to read a task with" in text


def test_shares_above_the_limit_say_that_the_machine_was_busy(told: dict[str, Any]) -> None:
    rested, busy = copy.deepcopy(told), copy.deepcopy(told)
    for model in rested["models"]:
        model["speed"] |= {"decode_fraction_of_dram": 0.5, "prefill_fraction_of_int8": 0.5}
    for model in busy["models"]:
        model["speed"] |= {"decode_fraction_of_dram": 1.2, "prefill_fraction_of_int8": 1.1}
    assert "the machine was busy" not in _Page(page(rested, "x.json")).text
    assert _Page(page(busy, "x.json")).text.count("the machine was busy while its limit") == 2


def test_names_from_right_to_left_leave_their_neighbours_in_place(told: dict[str, Any]) -> None:
    named = copy.deepcopy(told)
    named["models"][0]["name"] = "نموذج 2"
    text = page(named, "x.json")
    isolated = "\N{FIRST STRONG ISOLATE}نموذج 2\N{POP DIRECTIONAL ISOLATE}"
    assert f"<title>{isolated} · " in text
    assert text.count("نموذج 2") == text.count(isolated)


def test_energy_that_was_measured_stands_beside_the_estimate(told: dict[str, Any]) -> None:
    counted = copy.deepcopy(told)
    for model in counted["models"]:
        energy = model["speed"]["energy"]
        energy |= {"idle_watts": 5.0, "source": "measured: RAPL package-0"}
        energy["decode"] |= {"measured": 0.125, "above_idle": 0.0625}
    text = _Page(page(counted, "x.json")).text
    assert "Counters: measured: RAPL package-0" in text
    assert "Writing measured125 mJ125 mJ" in text
    assert "above idle measured62.5 mJ62.5 mJ" in text
    assert "Writing estimated" in text


def test_a_curve_begins_at_zero_and_ends_at_its_last_point() -> None:
    points = [(1.0, 50.0, 40.0, 60.0), (2.0, 100.0, 100.0, 100.0), (4.0, 75.0, 75.0, 75.0)]
    drawn = lines([Line(name="<m>", number=1, points=points)], "threads", log=True)
    assert "<m>" not in drawn
    [path] = re.findall(r"<polyline class='line' points='([^']*)'", drawn)
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in path.split())
    assert x2 - x1 == pytest.approx(x3 - x2)  # doublings are steps
    assert y2 < y3 < y1
    [base] = re.findall(r"class='base' [^>]*y1='([\d.]+)'", drawn)
    assert (float(base) - y1) * 2 == pytest.approx(float(base) - y2, abs=0.2)
    assert drawn.count("class='range'") == 1


def test_numbers_are_as_long_as_they_tell() -> None:
    told = {0.0: "0", 0.0271: "0.0271", 8.345: "8.35", 61.9: "61.9", 2666.7: "2,667"}
    assert {value: number(value) for value in told} == told
    assert [joules(x) for x in (2.5, 3.46e-7, 0.0)] == ["2.5 J", "346 nJ", "0 nJ"]
    assert number(3.09e-7) == "3.09 × 10⁻⁷"
    assert number(1.442e12, 4) == "1.442 × 10¹²"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["bitnet-2"], "bitnet-2: neither a file nor a known model; did you mean bitnet-2b"),
        ([DEFAULT, "no.trilobit"], "no.trilobit"),
        ([DEFAULT, "--out", "gone/page.html"], "make its folder first"),
        ([DEFAULT, "--out", "page.json"], "there the numbers will stand"),
        ([DEFAULT, "--text", "gone.txt"], "gone.txt"),
        ([DEFAULT, "--generate", "513"], "--generate 513 leaves no room for a prompt; lower it"),
        ([DEFAULT, ""], "MODEL is empty"),
        ([], "Missing argument 'MODEL...'"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path: Path, words: list[str], reason: str
) -> None:
    done = trilobit("report", *words, cwd=tmp_path)
    assert reason in error_of(done)
    assert list(tmp_path.iterdir()) == []


def test_models_are_named_in_their_places_or_by_an_option() -> None:
    def models(*words: str) -> object:
        return command.make_context("report", list(words), click.Context(cli)).params["models"]

    assert models("a", "b") == models("b", "-m", "a") == ("a", "b")
