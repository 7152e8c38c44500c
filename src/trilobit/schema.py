"""JSON schemas that an output is to fit, and other JSON of callers: of a bounded size and depth."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from functools import lru_cache

from trilobit.errors import RequestError

# Characters of a schema, an expression, a grammar, or of all choices. Real ones have thousands.
LONGEST = 300_000
_DEEPEST = 64  # lists and objects inside each other


def schema_text(given: object) -> str:
    """A JSON schema as JSON, whatever it was given as."""
    if isinstance(given, str):
        if len(given) > LONGEST:
            raise RequestError(f"json_schema has {len(given):,} characters; at most {LONGEST:,}")
        return _schema_of(given)
    if not isinstance(given, (Mapping, bool)):
        raise RequestError(
            f"json_schema is {reprlib.repr(given)}; expected a schema: an object, as JSON or a dict"
        )
    return as_json("json_schema", given)


@lru_cache(maxsize=8)  # parameters are often made of others, with another seed
def _schema_of(text: str) -> str:
    try:
        given = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise _not_json("json_schema", error) from None
    if isinstance(given, str):
        raise RequestError("json_schema is a text of JSON; expected a schema: an object")
    return schema_text(given)


def as_json(name: str, value: object) -> str:
    """What a caller gave as JSON of a bounded size; RequestError, which names it, otherwise."""
    try:
        _check_depth(name, value)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_mapping)
    except RequestError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(name, error) from None
    if len(text) > LONGEST:
        raise RequestError(f"{name} has {len(text):,} characters; at most {LONGEST:,}")
    return text


def _not_json(name: str, error: Exception) -> RequestError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return RequestError(f"{name} is no JSON: {reason[:200]}")


def _mapping(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is nothing that JSON has")


def _no_json(word: str) -> object:
    raise ValueError(f"{word} is no number of JSON")


def _check_depth(name: str, value: object, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise RequestError(f"{name}: more than {_DEEPEST} lists and objects inside each other")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            _check_depth(name, inner, depth + 1)
