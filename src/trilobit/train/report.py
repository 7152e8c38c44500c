"""Runs as one page: curves side by side, and the health of their layers. No script, no network."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError
from trilobit.formats.files import open_file

_MAX_LINE_BYTES = 1 << 20
_MOST_POINTS = 1000  # of a curve: more than a screen has columns
_WIDTH, _HEIGHT, _LEFT, _BELOW = 640, 260, 56, 24
_TICKS = 4
# Okabe and Ito's, which people with any eyes tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777")

_BEGINS = b"<!doctype html>"
# Key of the log -> what it is, and whether it is told of the held-out text.
_CURVES = {
    "held_out_bits_per_byte": "Held-out bits a byte",
    "held_out_accuracy": "Share of held-out pairs told apart",
    "held_out_loss": "Held-out loss",
    "loss": "Training loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Length of the gradient",
    "tokens_per_s": "Tokens a second",
}
# Of a mixture's texts: what a key begins with, before the text's name.
_OF_TEXTS = {"held_out_bits_per_byte/": "Held-out bits a byte of", "passes/": "Passes over"}
_OF_LAYERS = {
    "zero": "Share of codes that are 0, mean of the layers",
    "flips": "Share of codes that flipped since the evaluation before, mean of the layers",
}
_COLUMNS = ("minus", "zero", "plus", "flips", "scale", "absmax", "density")

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1360px; margin: 2em auto; padding: 0 1em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr));
       gap: 1.5em; }
figure { margin: 0; } figcaption, th { font-weight: 600; text-align: left; }
svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
svg line { stroke: currentColor; opacity: .15; } polyline { fill: none; stroke-width: 1.6; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
td, th { padding: .15em .8em .15em 0; } td + td { text-align: right; }
.key { display: inline-block; width: 1.6em; height: .25em; vertical-align: middle; }
details { margin: 1em 0; overflow-x: auto; }
"""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run's folder tells. layers: of its last evaluation."""

    name: str
    colour: str
    log: list[dict[str, Any]]
    health: list[dict[str, Any]]

    def curve(self, key: str) -> list[Point]:
        """Tokens and value of every line that has the key."""
        seen = [(e["step"], e["tokens"]) for e in self.log if _is_number(e.get("tokens"))]
        by_step = seen[-1][1] / seen[-1][0] if seen and seen[-1][0] else 1.0
        points = [(e["step"] * by_step, e[key]) for e in self.log if _is_number(e.get(key))]
        return points[:: -(-len(points) // _MOST_POINTS) or 1]

    def of_layers(self, key: str) -> list[Point]:
        """The same of the mean over all layers at each evaluation."""
        means = []
        for entry in self.health:
            values = [told.get(key) for told in entry["layers"].values()]
            numbers = [value for value in values if _is_number(value)]
            if numbers:
                means.append({"step": entry["step"], key: sum(numbers) / len(numbers)})
        lines = [e for e in self.log if _is_number(e.get("tokens"))][-1:]
        return Run(name="", colour="", log=means + lines, health=[]).curve(key)


def read_run(folder: Path, colour: str) -> Run:
    """The logs of a run's folder; FormatError where there is none."""
    log = _lines(folder / "log.jsonl")
    health = folder / "health.jsonl"
    found = _lines(health) if health.exists() else []
    sound = [e for e in found if _are_layers(e.get("layers"))]
    return Run(name=str(folder), colour=colour, log=log, health=sound)


def is_page(path: Path) -> bool:
    """Whether a file begins as a page does, or is empty."""
    with path.open("rb") as file:
        return file.read(len(_BEGINS)).lower() in (b"", _BEGINS)


def page(folders: Sequence[Path], left_out: Callable[[FormatError], object]) -> str:
    """One HTML page of these runs, whole in itself.

    left_out: called with the error of each run that has no log; FormatError where none has one.
    """
    runs: list[Run] = []
    errors = []
    for folder in folders:
        try:
            runs.append(read_run(folder, _COLOURS[len(runs) % len(_COLOURS)]))
        except FormatError as error:
            errors.append(error)
    if not runs:
        raise errors[0]
    for fault in errors:
        left_out(fault)
    figures = [_figure(title, [(r, r.curve(key)) for r in runs]) for key, title in _CURVES.items()]
    keys = dict.fromkeys(key for run in runs for entry in run.log for key in entry)
    figures += [
        _figure(
            f"{title} {html.escape(key.removeprefix(begin))}", [(r, r.curve(key)) for r in runs]
        )
        for begin, title in _OF_TEXTS.items()
        for key in keys
        if key.startswith(begin)
    ]
    figures += [
        _figure(title, [(r, r.of_layers(key)) for r in runs]) for key, title in _OF_LAYERS.items()
    ]
    return (
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Training runs</title><style>{_STYLE}</style>\n<h1>Training runs</h1>\n"
        f"{_summary(runs)}\n<main>{''.join(figures)}</main>\n{''.join(map(_layers, runs))}</html>\n"
    )


def _summary(runs: list[Run]) -> str:
    head = ("", "run", "steps", "tokens", "bits a byte", "perplexity", "training loss")
    rows = []
    for run in runs:
        last = {key: value for entry in run.log for key, value in entry.items()}
        numbers = (
            *(f"{x:,}" if _is_number(x) else "" for x in (last.get("step"), last.get("tokens"))),
            *(
                _shown(last.get(k))
                for k in ("held_out_bits_per_byte", "held_out_perplexity", "loss")
            ),
        )
        cells = "".join(f"<td>{cell}</td>" for cell in numbers)
        rows.append(f"<tr><td>{_key(run)}</td><td>{html.escape(run.name)}</td>{cells}</tr>")
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(rows)}</table>"


def _figure(title: str, curves: list[tuple[Run, list[Point]]]) -> str:
    points = [point for _, curve in curves for point in curve]
    if not points:
        return ""
    right = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high == low:
        low, high = low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT) * x / right
        return across, 8 + (_HEIGHT - _BELOW - 8) * (high - y) / (high - low)

    parts = []
    for i in range(_TICKS + 1):
        value = low + (high - low) * i / _TICKS
        _, down = place(0, value)
        parts.append(
            f"<line x1='{_LEFT}' x2='{_WIDTH}' y1='{down:.1f}' y2='{down:.1f}'/>"
            f"<text x='{_LEFT - 6}' y='{down + 4:.1f}' text-anchor='end'>{_shown(value)}</text>"
        )
        across, _ = place(right * i / _TICKS, low)
        anchor = "end" if i == _TICKS else "middle"
        parts.append(
            f"<text x='{across:.1f}' y='{_HEIGHT - 6}' text-anchor='{anchor}'>"
            f"{_tokens(right * i / _TICKS)}</text>"
        )
    for run, curve in curves:
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        parts.append(
            f"<polyline stroke='{run.colour}' points='{path}'>"
            f"<title>{html.escape(run.name)}</title></polyline>"
        )
    return (
        f"<figure><figcaption>{title}, by tokens</figcaption>"
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(parts)}</svg></figure>\n"
    )


def _layers(run: Run) -> str:
    if not run.health:
        return ""
    last = run.health[-1]
    head = "".join(f"<th>{column}</th>" for column in ("layer", *_COLUMNS))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_shown(told.get(column))}</td>" for column in _COLUMNS)
        + "</tr>"
        for name, told in last["layers"].items()
    )
    return (
        f"<details><summary>{_key(run)} Layers of {html.escape(run.name)} at step "
        f"{last['step']:,}</summary><table><tr>{head}</tr>{rows}</table></details>\n"
    )


def _key(run: Run) -> str:
    return f"<span class='key' style='background:{run.colour}'></span>"


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log that have a step; a line that is cut off or damaged is left out."""
    found = []
    with open_file(path)[0] as file:
        while line := file.readline(_MAX_LINE_BYTES):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                found.append(entry)
    if not found:
        raise FormatError(f"{path}: tells of no step; give the folder of a run that has begun")
    return found


def _are_layers(value: object) -> bool:
    return (
        isinstance(value, dict) and all(isinstance(x, dict) for x in value.values()) and value != {}
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < math.inf


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _tokens(count: float) -> str:
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:.0f}"
