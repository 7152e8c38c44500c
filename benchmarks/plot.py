"""Draws the result of `peers.py`, and prints what docs/speed.md says of it.

    python benchmarks/plot.py [--json benchmarks/results/peers.json] [--svg docs/peers.svg]

Bars are medians, lines reach from the least to the most. The same result gives the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from facts import RESULTS, ROOT

from trilobit.errors import FormatError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# There is no background: the text has a contrast of four to a white and to a dark page.
TEXT, OURS, THEIRS = "#767676", "#e58a56", "#a8b8c9"
PANELS = (
    ("decode_tokens_per_s", "decode, tokens/s", ".1f"),
    ("prefill_tokens_per_s", "prefill, tokens/s", ".1f"),
    ("peak_rss_mb", "peak memory, MB", ",.0f"),
)
STYLE = {
    "svg.fonttype": "none",  # the reader's font: smaller, and can be searched
    "svg.hashsalt": "trilobit",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


def draw(result: dict[str, Any], out: Path) -> None:
    """One row an engine, one panel a figure; of engines that did not run, the name and that."""
    import matplotlib  # here: --help does without it
    from matplotlib.figure import Figure

    rows = result["results"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.6 + 0.34 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, (name, title, digits) in zip(panels, PANELS, strict=True):
            _panel(axes, rows, name, digits)
            axes.set_title(title, fontsize=10)
        panels[0].set_yticks(range(len(rows)), _labels(rows))
        panels[0].invert_yaxis()
        about = {"Date": None, "Creator": None, "Title": "Trilobit and other engines"}
        figure.savefig(out, format="svg", transparent=True, metadata=about)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, digits: str) -> None:
    most = max((row[name]["most"] for row in rows if name in row), default=1)
    for at, row in enumerate(rows):
        if name not in row:
            axes.text(0, at, " did not run", va="center", fontstyle="italic")
            continue
        median, least, top = (row[name][key] for key in ("median", "least", "most"))
        colour = OURS if row["engine"] == "trilobit" else THEIRS
        spread = [[median - least], [top - median]]
        axes.barh(at, median, 0.62, color=colour, xerr=spread, ecolor=TEXT, capsize=2)
        axes.text(top + 0.02 * most, at, format(median, digits), va="center")
    axes.set_xlim(0, 1.2 * most)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


def _labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The engine, and its threads where one engine has several rows."""
    names = [row["label"] for row in rows]
    return [
        f"{row['label']}, {row['threads']} threads" if names.count(row["label"]) > 1 else name
        for row, name in zip(rows, names, strict=True)
    ]


def table(result: dict[str, Any]) -> str:
    """Markdown: medians and their range, the best of each column in bold."""
    rows = [row for row in result["results"] if "failed" not in row]
    best = [
        (min if name == "peak_rss_mb" else max)(row[name]["median"] for row in rows)
        for name, _, _ in PANELS
    ]
    lines = [f"| | {' | '.join(title for _, title, _ in PANELS)} |", "|---|---|---|---|"]
    for label, row in zip(_labels(result["results"]), result["results"], strict=True):
        if "failed" in row:
            lines.append(f"| {label} | did not run | | |")
            continue
        cells = [
            _cell(row[name], digits, row[name]["median"] == top)
            for (name, _, digits), top in zip(PANELS, best, strict=True)
        ]
        lines.append(f"| {label} ({row['weights']}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measure: dict[str, float], digits: str, best: bool) -> str:
    median, least, most = (format(measure[key], digits) for key in ("median", "least", "most"))
    shown = f"**{median}**" if best else median
    return shown if least == most else f"{shown} ({least}–{most})"


def caption(result: dict[str, Any]) -> str:
    """Where and of what the figures are."""
    rows = [row for row in result["results"] if "failed" not in row]
    most = max(row["prompt"] for row in rows), max(row["generate"] for row in rows)
    gates = result.get("gate_density", 0.5)
    open_gates = f", gates open as in trained models ({gates:g})" if gates < 0.5 else ""
    text = (
        f"Shape {result['shape']}, random weights{open_gates}, "
        f"{most[0]} tokens in and {most[1]} out, "
        f"{rows[0]['threads']} threads, {result['machine']} ({result['isa']}), "
        f"medians and ranges of {result['rounds']} alternating rounds, {result['date']}, "
        f"commit {result['commit']}."
    )
    fewer = [row for row in rows if (row["prompt"], row["generate"]) != most]
    for row in fewer:
        text += f" {row['label']}: {row['prompt']} in and {row['generate']} out."
    packages = ("llama-cpp-python", "litespark-inference", "transformers", "torch")
    found = [
        f"{name} {result['versions'][name]}" for name in packages if name in result["versions"]
    ]
    return f"{text} {', '.join(found)}."


def beside_f16(result: dict[str, Any]) -> str:
    """What ternary weights gain, as BitNet's papers put it: beside float16."""
    rows = {row["engine"]: row for row in result["results"] if "failed" not in row}
    if not {"trilobit", "llama.cpp-f16"} <= rows.keys():
        return ""
    decode, prefill, memory = (
        rows["trilobit"][name]["median"] / rows["llama.cpp-f16"][name]["median"]
        for name, _, _ in PANELS
    )
    return (
        f"So Trilobit decodes {decode:.1f} times and prefills {prefill:.1f} times as fast as "
        f"llama.cpp runs float16, in {100 * memory:.0f} % of the memory."
    )


def result_of(path: Path) -> dict[str, Any]:
    """What `peers.py` wrote there. FormatError where it did not."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ran = any("failed" not in row for row in result["results"])
    except (ValueError, KeyError, TypeError):
        raise FormatError(f"{path}: no result of peers.py") from None
    if not ran:
        raise FormatError(f"{path}: no engine ran; nothing to draw")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=RESULTS / "peers.json")
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "peers.svg")
    arguments = parser.parse_args()
    result = result_of(arguments.json)
    draw(result, arguments.svg)
    print(table(result), caption(result), beside_f16(result), sep="\n\n")


if __name__ == "__main__":
    cli.run(main)
