"""Plots of a report, as inline SVG that a style sheet colours: classes c0, c1, ... are models."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Height = Callable[[float], float]  # of a value in a plot

# As wide as a phone's column, so that letters there are not smaller than the page's.
_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 34
_TICKS = 4
_CHARACTER = 6.6  # of a tick's text, about, in the same units


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve. number: of its colour. points: x, y, and the least and most of y."""

    name: str
    number: int
    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False


def lines(curves: Sequence[Line], across: str, *, log: bool = False, percent: bool = False) -> str:
    """Curves over one axis that begins at 0 upwards. across: what x is. log: doublings are steps.

    Every x that a curve has is a tick, as far as there is room.
    """
    xs = sorted({x for curve in curves for x, *_ in curve.points})
    highest = max((most for curve in curves for *_, most in curve.points), default=0.0)
    step = _nice(highest / _TICKS) if highest > 0 else 1.0
    top = step * max(1, math.ceil(highest / step - 1e-9))

    def right(x: float) -> float:
        first, last, at = (math.log2(v) if log else v for v in (xs[0], xs[-1], x))
        share = (at - first) / (last - first) if last > first else 0.5
        return _LEFT + 14 + (_WIDTH - _LEFT - _RIGHT - 28) * share

    def down(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - y / top)

    parts = [*_rows(step, top, down, percent=percent)]
    last_end = -math.inf
    for x in xs:
        text = f"{x:,.0f}"
        at, half = right(x), _CHARACTER * len(text) / 2
        if at - half > last_end + 6:
            parts.append(_text(at, _HEIGHT - _BOTTOM + 17, text, "middle"))
            last_end = at + half
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 2, across, "end", "axis"))
    for curve in curves:
        dots = [(right(x), down(y)) for x, y, *_ in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        name = html.escape(curve.name)
        dash = " dashed" if curve.dashed else ""
        inside = [f"<polyline class='line{dash}' points='{path}'/>"]
        for (x, y, least, most), (at, height) in zip(curve.points, dots, strict=True):
            if most > least:
                inside.append(
                    f"<line class='range' x1='{at:.1f}' x2='{at:.1f}' "
                    f"y1='{down(least):.1f}' y2='{down(most):.1f}'/>"
                )
            value = f"{y:.1%}" if percent else number(y)
            inside.append(
                f"<circle cx='{at:.1f}' cy='{height:.1f}' r='3'>"
                f"<title>{name}: {value} at {x:,.0f}</title></circle>"
            )
        parts.append(f"<g class='c{curve.number}'>{''.join(inside)}</g>")
    return _svg(parts)


def columns(names: Sequence[str], stacks: Sequence[Sequence[float]], across: str) -> str:
    """A column for each stack of shares that make 1. names: of its parts, from below."""
    wide = (_WIDTH - _LEFT - _RIGHT) / len(stacks)
    gap = min(3.0, wide / 5)
    high = _HEIGHT - _TOP - _BOTTOM
    parts = [*_rows(0.25, 1.0, lambda y: _TOP + high * (1 - y), percent=True)]
    every = max(1, math.ceil(_CHARACTER * 3.5 / wide))
    for column, stack in enumerate(stacks):
        x, below = _LEFT + wide * column, 0.0
        for part, (name, share) in enumerate(zip(names, stack, strict=True)):
            y = _TOP + high * (1 - below - share)
            parts.append(
                f"<rect class='p{part}' x='{x + gap / 2:.1f}' y='{y:.1f}' "
                f"width='{wide - gap:.1f}' height='{high * share:.1f}'>"
                f"<title>{across} {column}, {html.escape(name)}: {share:.1%}</title></rect>"
            )
            below += share
        if column % every == 0:
            parts.append(_text(x + wide / 2, _HEIGHT - _BOTTOM + 17, str(column), "middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 2, across, "end", "axis"))
    return _svg(parts)


def bar(pieces: Sequence[tuple[str, float]], total: float) -> str:
    """One lying bar of pieces, beside others whose longest has `total`."""
    parts, x = [], 0.0
    for part, (title, amount) in enumerate(pieces):
        wide = 100 * amount / total if total else 0.0
        parts.append(
            f"<rect class='s{part}' x='{x:.2f}' width='{max(0.0, wide):.2f}' height='10'>"
            f"<title>{html.escape(title)}</title></rect>"
        )
        x += wide
    return (
        "<svg class='bar' viewBox='0 0 100 10' preserveAspectRatio='none' role='img'>"
        f"{''.join(parts)}</svg>"
    )


def number(value: float) -> str:
    """Three digits, and more where a number is larger."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if value == 0 or 1e-3 <= abs(value):
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= step * (1 - 1e-9))


def _rows(step: float, top: float, down: Height, *, percent: bool) -> Iterator[str]:
    for i in range(round(top / step) + 1):
        y = down(i * step)
        kind = "base" if i == 0 else "grid"
        yield f"<line class='{kind}' x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        value = f"{i * step:.0%}" if percent else f"{i * step:,g}"
        yield _text(_LEFT - 8, y + 4, value, "end")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return (
        f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>"
        f"{html.escape(text)}</text>"
    )


def _svg(parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(parts)}</svg>"
