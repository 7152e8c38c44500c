"""The comparison with other engines: who does not run is said, and the result is drawn."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_benchmarks import ROOT, result_of, script

MEASURES = ("prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_mb")


@pytest.fixture(scope="module")
def peer_sizes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str | Path, ...]:
    """The smallest shape, whose models are made once, and few tokens."""
    sizes = ("--shape", "125m", "--prompt", "8", "--generate", "2", "--rounds", "2")
    return (*sizes, "--threads", "1", "--folder", tmp_path_factory.mktemp("models"))


def test_peers_that_are_not_installed_leave_the_others_their_turn(
    tmp_path: Path, peer_sizes: tuple[str | Path, ...]
) -> None:
    venv = tmp_path / "none"
    found = result_of("peers.py", tmp_path / "peers.json", *peer_sizes, "--peers-venv", venv)
    ours, *peers = found["results"]
    assert ours["engine"] == "trilobit"
    assert ours["weights"] == "ternary in 2 bits, exact bf16 head"
    assert (ours["runs"], ours["prompt"], ours["generate"], ours["threads"]) == (2, 8, 2, 1)
    for name in MEASURES:
        assert 0 < ours[name]["least"] <= ours[name]["median"] <= ours[name]["most"]
    assert {"llama.cpp F16", "litespark", "transformers"} < {one["label"] for one in peers}
    for one in peers:
        assert one["failed"].endswith(f" is not installed in {venv}")


@pytest.mark.skipif(sys.platform == "win32", reason="the environment is a shell script")
def test_a_peer_that_breaks_is_one_line(tmp_path: Path, peer_sizes: tuple[str | Path, ...]) -> None:
    packages = tmp_path / "packages"
    about = packages / "litespark_inference-1.0.dist-info" / "METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: litespark-inference\nVersion: 1.0\n")
    # Named as a script beside peer_engines.py is, and as a package that transformers looks for
    (packages / "kernels.py").write_text("names = 'no such kernel'\n")
    (packages / "litespark_inference.py").write_text(
        "import kernels\nraise OSError(kernels.names)\n"
    )
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    arguments = (*peer_sizes, "--peers-venv", tmp_path / "venv", "--only", "trilobit", "litespark")
    found = result_of("peers.py", tmp_path / "peers.json", *arguments)
    assert found["versions"]["litespark-inference"] == "1.0"
    ours, theirs = found["results"]
    assert ours["runs"] == 2
    assert theirs["failed"] == "exit 1: OSError: no such kernel"


def plotted(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[bytes, str]:
    """The SVG and the text that `plot.py` makes of a result."""
    pytest.importorskip("matplotlib")
    about = {"shape": "2b4t", "machine": "a machine", "isa": "avx2", "rounds": 3}
    about |= {"date": "2026-11-24", "commit": "abc1234", "versions": {"torch": "2.13.0"}}
    path, svg = tmp_path / "peers.json", tmp_path / "peers.svg"
    path.write_text(json.dumps({**about, "results": rows}), encoding="utf-8")
    done = script("plot.py", "--json", path, "--svg", svg)
    assert done.returncode == 0, done.stderr
    return svg.read_bytes(), done.stdout


def row(label: str, *medians: float, generate: int = 64) -> dict[str, Any]:
    about = {"engine": label.lower(), "label": label, "weights": "some bits", "threads": 2}
    measures = {
        name: {"median": median, "least": median - 1, "most": median + 2}
        for name, median in zip(MEASURES, medians, strict=True)
    }
    return {**about, "prompt": 512, "generate": generate, "runs": 3, **measures}


ROWS = [
    row("Trilobit", 170.5, 40.25, 1093),
    row("Other & <sons>", 45.5, 21.5, 998, generate=8),
    {"engine": "broken", "label": "Broken", "weights": "none", "failed": "exit 1: no"},
]


def test_the_plot_names_every_engine_and_its_figures(tmp_path: Path) -> None:
    svg, _ = plotted(tmp_path, ROWS)
    assert len(svg) < 60_000
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = ["".join(one.itertext()).strip() for one in root.iter(f"{root.tag[:-3]}text")]
    assert {"Trilobit", "Other & <sons>", "Broken"} <= set(texts)
    assert {"170.5", "40.2", "1,093", "45.5", "21.5", "998"} <= set(texts)
    assert texts.count("did not run") == 3


def test_the_same_result_is_the_same_plot(tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    svg, _ = plotted(tmp_path, ROWS)
    assert plotted(again, ROWS)[0] == svg
    assert plotted(again, [row("Trilobit", 170.5, 41, 1093), *ROWS[1:]])[0] != svg


def test_the_table_has_medians_ranges_and_the_best_in_bold(tmp_path: Path) -> None:
    _, text = plotted(tmp_path, ROWS)
    assert (
        "| Trilobit (some bits) | **40.2** (39.2–42.2) | **170.5** (169.5–172.5) "
        "| 1,093 (1,092–1,095) |\n" in text
    )
    assert (
        "| Other & <sons> (some bits) | 21.5 (20.5–23.5) | 45.5 (44.5–47.5) | **998** (997–1,000) |"
        in text
    )
    assert "| Broken | did not run | | |" in text
    assert "512 tokens in and 64 out" in text
    assert "Other & <sons>: 512 in and 8 out." in text


def test_page_and_plot_show_the_result_that_is_kept() -> None:
    """To repair: `python benchmarks/plot.py`, and what it prints into docs/speed.md."""
    pytest.importorskip("matplotlib")
    kept = ROOT / "benchmarks" / "results" / "peers.json"
    rows = json.loads(kept.read_text(encoding="utf-8"))["results"]
    root = ElementTree.parse(ROOT / "docs" / "peers.svg").getroot()
    texts = {"".join(one.itertext()).strip() for one in root.iter(f"{root.tag[:-3]}text")}
    for one in rows:
        assert one["label"] in texts
        if "failed" not in one:
            assert format(one["decode_tokens_per_s"]["median"], ".1f") in texts
    done = script("plot.py", "--svg", os.devnull)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert "(peers.svg)" in page
    assert done.stdout in page
