"""Plots of a report, as inline SVG that a style sheet colours: classes c0, c1, ... are models."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

Height = Callable[[float], float]  # of a value in a plot

# As wide as a phone's column, so that letters there are not smaller than the page's.
_WIDTH, _HEIGHT = 400, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 38
_TICKS, _MOST_TICKS = 4, 8
_FAR_APART = 10  # times: the smaller would lie on the ground
_CHARACTER = 6.6  # of a tick's text, about, in the same units


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve. number: of its colour. points: x, y, and the least and most of y."""

    name: str
    number: int
    points: Sequence[tuple[float, float, float, float]]


def lines(curves: Sequence[Line], across: str, *, log: bool = False, percent: bool = False) -> str:
    """Curves over an axis from 0 upwards, or a logarithmic one where they are far apart.

    across: what x is. log: doublings are equal steps to the right.
    Every x that a curve has is a tick, as far as there is room.
    """
    xs = sorted({x for curve in curves for x, *_ in curve.points})
    scale = _scale([y for curve in curves for _, *ys in curve.points for y in ys])

    def right(x: float) -> float:
        first, last, at = (math.log2(v) if log else v for v in (xs[0], xs[-1], x))
        share = (at - first) / (last - first) if last > first else 0.5
        return _LEFT + 14 + (_WIDTH - _LEFT - _RIGHT - 28) * share

    def down(y: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - scale.share(y))

    parts = [*_rows(scale.ticks, down, percent=percent)]
    last_end = -math.inf
    for x in xs:
        text = f"{x:,.0f}"
        at, half = right(x), _CHARACTER * len(text) / 2
        if at - half > last_end + 6:
            parts.append(_text(at, _HEIGHT - _BOTTOM + 17, text, "middle"))
            last_end = at + half
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, across, "end"))
    for curve in curves:
        dots = [(right(x), down(y)) for x, y, *_ in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
        name = html.escape(curve.name)
        inside = [f"<polyline class='line' points='{path}'/>"]
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


def columns(names: Sequence[str], stacks: Sequence[Sequence[float]]) -> str:
    """A column for each layer: shares that make 1. names: of its parts, from below."""
    wide = (_WIDTH - _LEFT - _RIGHT) / len(stacks)
    gap = min(3.0, wide / 5)
    high = _HEIGHT - _TOP - _BOTTOM
    parts = [*_rows([0.0, 0.25, 0.5, 0.75, 1.0], lambda y: _TOP + high * (1 - y), percent=True)]
    every = max(1, math.ceil(_CHARACTER * 3.5 / wide))
    for layer, stack in enumerate(stacks):
        x, below = _LEFT + wide * layer, 0.0
        for part, (name, share) in enumerate(zip(names, stack, strict=True)):
            below += share
            parts.append(
                f"<rect class='p{part}' x='{x + gap / 2:.1f}' y='{_TOP + high * (1 - below):.1f}' "
                f"width='{wide - gap:.1f}' height='{high * share:.1f}'>"
                f"<title>layer {layer}, {html.escape(name)}: {share:.1%}</title></rect>"
            )
        if layer % every == 0:
            parts.append(_text(x + wide / 2, _HEIGHT - _BOTTOM + 17, str(layer), "middle"))
    parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, "layer", "end"))
    return _svg(parts)


def bar(pieces: Sequence[tuple[str, float, int]], total: float) -> str:
    """A lying bar: title, amount and shade of each piece. total: of the longest one beside it."""
    parts, x = [], 0.0
    for title, amount, shade in pieces:
        wide = 100 * amount / total if total else 0.0
        parts.append(
            f"<rect class='s{shade}' x='{x:.2f}' width='{wide:.2f}' height='10'>"
            f"<title>{html.escape(title)}</title></rect>"
        )
        x += wide
    return (
        "<svg class='bar' viewBox='0 0 100 10' preserveAspectRatio='none' role='img'>"
        f"{''.join(parts)}</svg>"
    )


def number(value: float, digits: int = 3) -> str:
    """So many digits; all of those before the point, but for millions and what is tiny."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        whole = 10 ** (digits - 1)
        return f"{value:,.0f}" if abs(value) >= whole else f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}"


def joules(energy: float) -> str:
    """In the unit that leaves digits before the point."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3), ("µJ", 1e-6)):
        if abs(energy) >= size:
            return f"{number(energy / size)} {unit}"
    return f"{number(energy / 1e-9)} nJ"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """Upwards from 0, or logarithmic. ticks: in order; the first and last are the ends."""

    ticks: Sequence[float]
    logarithmic: bool

    def share(self, y: float) -> float:
        """How far up a value is."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            return math.log10(max(y, low) / low) / math.log10(high / low)
        return y / high


def _scale(values: Sequence[float]) -> _Scale:
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low > 0 and high / low > _FAR_APART:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        rounds = [n * 10.0**power for power in range(first, last) for n in (1, 2, 5)]
        rounds.append(10.0**last)
        begin = max(i for i, tick in enumerate(rounds) if tick <= low)
        end = min(i for i, tick in enumerate(rounds) if tick >= high)
        fine = rounds[begin : end + 1]
        return _Scale(ticks=fine if len(fine) <= _MOST_TICKS else rounds[::3], logarithmic=True)
    step = _nice(high / _TICKS) if high > 0 else 1.0
    steps = max(1, math.ceil(high / step - 1e-9))
    return _Scale(ticks=[step * i for i in range(steps + 1)], logarithmic=False)


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= step * (1 - 1e-9))


def _rows(ticks: Sequence[float], down: Height, *, percent: bool) -> Iterator[str]:
    for i, tick in enumerate(ticks):
        y = down(tick)
        ends = f"x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{y:.1f}' y2='{y:.1f}'"
        yield f"<line class='{'grid' if i else 'base'}' {ends}/>"
        value = f"{100 * tick:.3g}%" if percent else _amount(tick)
        yield _text(_LEFT - 8, y + 4, value, "end")


def _amount(tick: float) -> str:
    """Short enough for the room beside the axis."""
    return f"{tick / 1000:.4g}k" if tick >= 1000 else f"{tick:.4g}"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{html.escape(text)}</text>"


def _svg(parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(parts)}</svg>"
