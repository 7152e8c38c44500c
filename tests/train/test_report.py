"""`trilobit train report`: one page that holds what the logs say, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from trilobit.cli import cli
from trilobit.errors import FormatError, OutputError
from trilobit.train.report import page, read_run

LAYER = {"minus": 0.3, "zero": 0.4, "plus": 0.3, "scale": 0.02, "absmax": 3.5, "density": 0.97}


def _run(folder: Path, losses: list[float]) -> Path:
    folder.mkdir()
    lines = [
        {"step": 10 * i, "tokens": 1000 * i, "loss": loss, "tokens_per_s": 50}
        for i, loss in enumerate(losses, 1)
    ]
    measured = {"step": 20, "held_out_bits_per_byte": 1.25, "held_out_perplexity": 12.5}
    (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, measured]))
    health = [
        {"step": step, "layers": {"a.q_proj": {**LAYER, "flips": flips}}}
        for step, flips in ((10, None), (20, 0.125))
    ]
    (folder / "health.jsonl").write_text("".join(json.dumps(x) + "\n" for x in health))
    return folder


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_what_the_logs_say_and_asks_for_nothing(tmp_path: Path) -> None:
    one, two = _run(tmp_path / "one", [4.0, 3.0]), _run(tmp_path / "<b>&", [4.5, 2.0, 1.5])
    text = page([one, two], print)
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "<b>&" not in text
    assert text.count("&lt;b&gt;&amp;") > 3
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import", text)
    for told in ("1.25", "12.5", "a.q_proj", "0.125", "3.5", "0.97"):
        assert f"<td>{told}</td>" in text or told in text
    loss = text[text.index("Training loss, by tokens") :]
    first, second = re.findall(r"<polyline [^>]*points='([^']*)'", loss)[:2]
    # Two and three points; the highest loss is at the top, and both begin at the same place.
    xs, ys = zip(*(map(float, p.split(",")) for p in first.split() + second.split()), strict=True)
    assert len(xs) == 5
    assert xs[0] == xs[2] < xs[1] == xs[3] < xs[4] == 640
    assert min(ys) == ys[2] == 8
    assert max(ys) == ys[4]


def test_evaluations_stand_at_their_tokens(tmp_path: Path) -> None:
    run = read_run(_run(tmp_path / "run", [4.0, 3.0, 2.0]), "#000")
    assert run.curve("held_out_bits_per_byte") == [(2000.0, 1.25)]
    assert run.of_layers("flips") == [(2000.0, 0.125)]
    assert run.of_layers("zero") == [(1000.0, 0.4), (2000.0, 0.4)]


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    run = read_run(_run(tmp_path / "run", [1.0] * 4500), "#000")
    assert 900 <= len(run.curve("loss")) <= 1000


def test_damaged_lines_and_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = _run(tmp_path / "run", [4.0])
    log = folder / "log.jsonl"
    log.write_text(
        log.read_text()
        + '{"step": 20, "tokens": 2000, "loss": NaN}\n[1]\n{"step": 30, "tokens": "x"}\n{"step": 3'
    )
    (folder / "health.jsonl").write_text('{"step": 20, "layers": {"a": 3}}\n')
    run = read_run(folder, "#000")
    assert run.curve("loss") == [(1000.0, 4.0)]
    assert page([folder], print)


@pytest.mark.parametrize("content", ["", "{}\n", "x"])
def test_a_log_without_steps_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with pytest.raises(FormatError, match="tells of no step; give the folder of a run"):
        page([tmp_path], print)


def test_the_command_writes_the_page_of_those_that_have_a_log(tmp_path: Path) -> None:
    run, out = _run(tmp_path / "run", [4.0]), tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["train", "report", str(run), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_text(encoding="utf-8") == page([run], print)
    gone = str(tmp_path / "gone")
    more = CliRunner().invoke(cli, ["train", "report", gone, str(run), "--out", str(out)])
    assert (more.exit_code, out.read_text(encoding="utf-8")) == (0, page([run], print))
    assert f"left out: {gone}/log.jsonl: no such file; check the name\n" in more.output
    with pytest.raises(FormatError, match=r"gone/log.jsonl"):
        CliRunner().invoke(cli, ["train", "report", gone], catch_exceptions=False)
    assert CliRunner().invoke(cli, ["train", "report"]).exit_code == 2


def test_a_page_takes_the_place_of_pages_only(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [4.0])
    before = (run / "log.jsonl").read_bytes()
    report = ["train", "report", str(run), "--out"]
    with pytest.raises(OutputError, match=r"log.jsonl: holds no page; --out replaces pages only"):
        CliRunner().invoke(cli, [*report, str(run / "log.jsonl")], catch_exceptions=False)
    assert (run / "log.jsonl").read_bytes() == before
    for _ in range(2):
        again = CliRunner().invoke(cli, [*report, str(tmp_path / "page.html")])
        assert again.exit_code == 0
