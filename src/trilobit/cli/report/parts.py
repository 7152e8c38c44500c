"""What the sections of a report are made of: cards, tables, bars and curves, models side by side.

A cell is what a table says of a model, as HTML; a value is a number of it, None if there is none.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from trilobit.cli.report import plot
from trilobit.cli.report.plot import Line, number
from trilobit.cli.units import size

Facts = dict[str, Any]  # JSON values
Cell = Callable[[Facts], str]
Value = Callable[[Facts], float | None]
NOT_MEASURED = "<span class='none'>not measured</span>"
_COLOURS = 6  # of models, in the style sheet
_LAST_SHADE = 5  # of a bar's pieces: grey


def heading(title: str, note: str) -> str:
    """The beginning of a section."""
    return f"<h2>{title}</h2><p class='note'>{safe(note)}</p>\n"


def legend(models: list[Facts]) -> str:
    """Which model has which colour."""
    keys = "".join(f"<span>{_key(i, model)}</span>" for i, model in enumerate(models))
    return f"<div class='legend'>{keys}</div>"


def card(
    title: str,
    models: list[Facts],
    value: Value,
    unit: str,
    *,
    note: str = "",
    most: float | None = None,
) -> str:
    """A number of each model, large, and as a bar. most: of the bar, else the largest is."""
    values = [value(model) for model in models]
    longest = most or max((v for v in values if v is not None), default=0.0)
    several = len(models) > 1
    rows = []
    for i, (model, found) in enumerate(zip(models, values, strict=True)):
        dot = "<i class='dot'></i>" if several else ""
        told, track = f"<p class='value none'>{dot}not measured</p>", ""
        if found is not None:
            told = f"<p class='value'>{dot}{number(found)} <small>{unit}</small></p>"
            if several or most:
                share = min(100.0, 100 * found / longest) if longest else 0.0
                track = f"<div class='track'><b style='width:{share:.1f}%'></b></div>"
        rows.append(f"<div class='{_colour(i)}' title='{safe(short(model))}'>{told}{track}</div>")
    below = f"<p class='note'>{note}</p>" if note else ""
    kind = "card several" if several else "card"
    return f"<div class='{kind}'><h3>{title}</h3>{''.join(rows)}{below}</div>"


def table(models: list[Facts], rows: dict[str, Cell]) -> str:
    """A row for each of some facts, a column for each model; of one model in two columns."""
    head = ""
    if len(models) > 1:
        names = "".join(f"<th>{_key(i, model)}</th>" for i, model in enumerate(models))
        head = f"<thead><tr><th></th>{names}</tr></thead>"
    half = -(-len(rows) // 2)
    body = "".join(
        f"<tr{' class=top' * (i in (0, half))}><th>{title}</th>"
        f"{''.join(f'<td>{cell(model)}</td>' for model in models)}</tr>"
        for i, (title, cell) in enumerate(rows.items())
    )
    kind = "" if head else f" class='one' style='--half: {half}'"
    return f"<div class='card wide'><table{kind}>{head}<tbody>{body}</tbody></table></div>\n"


def bars(
    title: str, models: list[Facts], names: list[str], sizes: Sequence[Sequence[float]]
) -> str:
    """Bytes by part as bars, one under the other, and what their shades mean; the last is rest."""
    longest = max(sum(one) for one in sizes)
    shades = [*range(len(names) - 1), _LAST_SHADE]
    rows = []
    for model, one in zip(models, sizes, strict=True):
        pieces = [
            (f"{name}: {size(round(part))}", part, shade)
            for name, part, shade in zip(names, one, shades, strict=True)
        ]
        of_model = f" of {safe(short(model))}" if len(models) > 1 else ""
        rows.append(f"<h3>{title}{of_model}: {size(round(sum(one)))}</h3>")
        rows.append(plot.bar(pieces, longest))
    used = [i for i in range(len(names)) if any(one[i] for one in sizes)]
    told = names
    if len(models) == 1:
        told = [f"{name}, {size(round(part))}" for name, part in zip(names, sizes[0], strict=True)]
    keys = "".join(f"<span class='s{shades[i]}'><i></i>{told[i]}</span>" for i in used)
    return f"<div class='card bars'>{''.join(rows)}<div class='legend parts'>{keys}</div></div>\n"


def curves(title: str, models: list[Facts], figure: str, along: str, key: str) -> str:
    """Tokens a second of each model. along: its measurements; key: what they differ in."""
    drawn = [
        Line(
            name=short(model),
            number=i % _COLOURS,
            points=[(one[key], one[figure], *one["spread"][figure]) for one in model[along]],
        )
        for i, model in enumerate(models)
    ]
    across = "threads" if key == "threads" else "tokens before"
    return (
        f"<div class='card'><h3>{title} <small>tokens/s</small></h3>"
        f"{plot.lines(drawn, across, log=True)}</div>"
    )


def layer_curves(title: str, models: list[Facts], which: int) -> str:
    """One of the two shares of `LLM.activity`, of each layer of each model that has them."""
    drawn = [
        Line(
            name=short(model),
            number=i % _COLOURS,
            points=[(n, one[which], one[which], one[which]) for n, one in enumerate(found)],
        )
        for i, model in enumerate(models)
        if (found := model["activity"])
    ]
    return f"<div class='card'><h3>{title}</h3>{plot.lines(drawn, 'layer', percent=True)}</div>"


def of(part: str, key: str) -> Value:
    """A number of a part that may not have been measured."""
    return lambda model: model[part] and model[part][key]


def short(model: Facts) -> str:
    """A name as it was given; of a path, its last part."""
    name: str = model["name"]
    if name.endswith((".trilobit", ".gguf")) or name.startswith(("/", ".")):
        name = name.rstrip("/").rpartition("/")[2].removesuffix(".trilobit") or name
    return _isolated(name)


def _isolated(text: str) -> str:
    """A text that may run from right to left, kept from moving what stands beside it."""
    runs_left = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    return f"\N{FIRST STRONG ISOLATE}{text}\N{POP DIRECTIONAL ISOLATE}" if runs_left else text


def safe(text: str) -> str:
    """As text of a page."""
    return html.escape(text)


def _key(i: int, model: Facts) -> str:
    return f"<span class='{_colour(i)}'><i class='dot'></i></span>{safe(short(model))}"


def _colour(i: int) -> str:
    return f"c{i % _COLOURS}"
