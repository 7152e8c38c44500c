"""A recipe's file as plain values, and plain values as checked dataclasses.

A recipe may come from anybody: its size, its depth and the length of its keys are bounded before a
parser sees them, and no message shows more of a value than a line has room for.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.files import read_bytes

MAX_BYTES = 128 << 10  # a thousand names of files
# A key of n parts takes tomllib n² steps and words; a recipe's keys have two parts.
_MOST_POINTS = 100
_MOST_POINTS_WITH_TEXTS = 1000
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')
# What parsers raise, beside their own errors, for dates, numbers and tags that cannot be.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)


def shown(value: object) -> str:
    """A value of a recipe as it may stand in a message: short, and of one line."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"  # Python refuses to spell the longest
    return _SHORT.repr(value)


def read_values(path: Path) -> dict[str, Any]:
    """The keys of a .toml, .yaml or .yml file; RecipeError, without the path, where it has none."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
    except FormatError as error:
        reason = str(error).removeprefix(f"{path}: ").split(";")[0]
        raise RecipeError(f"cannot read the recipe ({reason})") from error
    except UnicodeDecodeError as error:
        raise RecipeError("the recipe is not UTF-8 text") from error
    if path.suffix == ".toml":
        return _toml(text)
    if path.suffix in (".yaml", ".yml"):
        return _yaml(text)
    raise RecipeError("a recipe's name ends in .toml, .yaml or .yml")


def has_key(kind: Any, key: object) -> bool:
    """Whether the plain values of a dataclass have a key. A folder is where its file was found."""
    return any(f.name == key != "folder" for f in dataclasses.fields(kind))


def build(kind: Any, values: object, where: str = "") -> Any:
    """A dataclass from plain values; every key and type is checked against its fields.

    Raises RecipeError for a key or a value that is not understood.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"'{where}' must be a table of keys")
    hints = typing.get_type_hints(kind)
    # The folder is where the file was found, and no key.
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "folder"}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            name = key if isinstance(key, str) else shown(key)
            raise RecipeError(
                f"unknown key '{prefix}{_one_line(name, 80)}'; known here: {', '.join(fields)}"
            )
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"key '{prefix}{name}' is missing")
    return kind(**{key: _checked(hints[key], value, prefix + key) for key, value in values.items()})


def check_range(where: str, value: float, least: float, most: float) -> None:
    """RecipeError when a number lies outside of [least, most]; NaN does."""
    if not least <= value <= most:
        least, most = (int(x) if x == int(x) else x for x in (least, most))
        raise RecipeError(f"{where} is {shown(value)}; it must be from {least} to {most}")


_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _checked(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if not isinstance(value, str) or value not in options:
            raise RecipeError(f"'{where}' is {shown(value)}; one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        size = None if options[-1] is Ellipsis else len(options)
        if not isinstance(value, list | tuple) or (size and len(value) != size):
            raise RecipeError(f"'{where}' must be a list{f' of {size} values' if size else ''}")
        if dataclasses.is_dataclass(options[0]):
            return tuple(build(options[0], item, f"{where}[{n}]") for n, item in enumerate(value))
        return tuple(_checked(options[0], item, where) for item in value)
    if origin is types.UnionType:
        return None if value is None else _checked(options[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # which no key accepts
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        # YAML takes 1e-3 for a text.
        point = " (1e-3 needs a point in YAML: 1.0e-3)" if hint is float else ""
        raise RecipeError(f"'{where}' is {shown(value)}; it must be {_TYPES[hint]}{point}")
    return value


def _toml(text: str) -> dict[str, Any]:
    for number, line in enumerate(text.splitlines(), 1):
        points = line.count(".")
        outside = points and _TEXTS.sub("", line).split("#")[0].count(".")
        if outside > _MOST_POINTS or points > _MOST_POINTS_WITH_TEXTS:
            raise RecipeError(f"line {number} has {points} points; write one value a line")
    try:
        return tomllib.loads(text)
    except _UNREADABLE as error:
        raise RecipeError(f"is not TOML: {_reason(error)}") from None


def _yaml(text: str) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """A few lines of aliases stand for gigabytes, and a recipe has no need of them.

        Of a key that is given twice YAML would take the last without a word.
        """

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.get_event()
                raise RecipeError(
                    f"line {event.start_mark.line + 1} has the alias *{event.anchor[:40]}; write "
                    "its value out"
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise RecipeError(f"line {node.start_mark.line + 1}: a key is given twice")
            return mapping

    try:
        values = yaml.load(text, Strict)
    except RecipeError:
        raise
    except (yaml.YAMLError, *_UNREADABLE) as error:
        raise RecipeError(f"is not YAML: {_reason(error)}") from None
    if not isinstance(values, dict):
        raise RecipeError("holds no keys; see docs/train.md for a recipe")
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    # Of YAML's dates, numbers and bytes, a conversion's own words; it may have none for us.
    unread = isinstance(error, LookupError | AttributeError | TypeError)
    return "a value is not of its tag's type" if unread else _one_line(str(error), 300)


def _one_line(text: str, most: int) -> str:
    line = " ".join(text[: 4 * most].split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= most else f"{line[:most]}..."


class _Short(reprlib.Repr):
    """reprlib, but for whole numbers that Python would not spell, wherever they stand."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 128:
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT = _Short()
