"""How good models are, as two sections of a report: how they foretell text, and tasks."""

from __future__ import annotations

from collections.abc import Iterator

from trilobit.cli.report.parts import NOT_MEASURED, Cell, Facts, heading, safe, short, table
from trilobit.cli.report.plot import number
from trilobit.cli.units import count


def perplexities(models: list[Facts], texts: list[str]) -> Iterator[str]:
    """Of texts that have these names."""
    yield heading(
        "How well it foretells text",
        f"Of {', '.join(texts)}, every token once. Less is better; bits per byte compare models "
        "of different tokenizers."
        if texts
        else "Not measured: give a text with --text FILE.",
    )
    if not texts:
        return

    def cell(key: str, spread: str = "") -> Cell:
        return lambda model: _value(model["perplexity"] or {}, key, spread)

    yield table(
        models,
        {
            "Bits per byte": cell("bits_per_byte"),
            "Perplexity by token": cell("perplexity", "standard_error"),
            "Perplexity by word": cell("perplexity_by_word"),
            "Tokens scored": cell("tokens"),
            "Tokens read together": cell("window"),
        },
    )
    yield from _unread(models, "perplexity", "text")


def scores(models: list[Facts]) -> Iterator[str]:
    """Of tasks, beside what blind guessing gives."""
    asked = {name: one for model in models for name, one in _by_name(model).items()}
    yield heading(
        "Tasks",
        "Scores by lm-evaluation-harness with their standard errors. Where one of some answers is "
        "chosen, blind guessing has what is called chance; where it is written, about nothing."
        if asked
        else "Not measured: the tasks of the papers' tables (ARC, HellaSwag and others) are with "
        "--tasks arc_easy,hellaswag --limit 200, from files with --data FOLDER.",
    )
    if not asked:
        return

    def cell(name: str) -> Cell:
        return lambda model: _value(_by_name(model).get(name, {}), "value", "standard_error")

    yield table(models, {_title(name, one): cell(name) for name, one in asked.items()})
    yield from _unread(models, "tasks", "task")


def _by_name(model: Facts) -> dict[str, Facts]:
    return {f"{one['task']}, {one['metric']}": one for one in model["tasks"] or ()}


def _title(name: str, score: Facts) -> str:
    told = [count(score["questions"], "question")]
    if score["shots"]:
        told.append(f"{count(score['shots'], 'example')} before each")
    if score["chance"] is not None:
        told.append(f"chance {number(score['chance'])}")
    return f"{safe(name)} <small>{', '.join(told)}</small>"


def _value(found: Facts, key: str, spread: str) -> str:
    if found.get(key) is None:
        return NOT_MEASURED
    error = found.get(spread)
    return number(found[key], 4) + (f" ± {number(error, 2)}" if error is not None else "")


def _unread(models: list[Facts], part: str, what: str) -> Iterator[str]:
    for model in models:
        if model[part] is None:
            told = f"{safe(short(model))} has no tokenizer to read a {what} with"
            yield f"<p class='note'>{told}.</p>"
