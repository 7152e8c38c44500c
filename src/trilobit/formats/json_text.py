"""JSON from files that nobody vouches for, bounded before anything of it is built.

Bytes bound little: `[[],[],…]` takes twenty-five times its length as Python's lists.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

# Values in one text. The largest published headers and indices name 100,000 tensors with some ten
# values each; two million empty lists take 130 MB.
MOST_VALUES = 2_000_000
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_DIGITS = 309  # integers of more are beyond every float


class JSONFault(Exception):
    """Why a text is not taken, as the end of a sentence that begins with its name."""


def parse(raw: bytes | str) -> Any:
    """The value of a JSON text; a number beyond float64 is infinite, with a point or without.

    Raises JSONFault for what is not JSON or UTF-8, names something twice, or holds more than
    `MOST_VALUES` values.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    # Text has commas too: look which are in strings only where there are that many.
    if _separators(data) > MOST_VALUES and _separators(_STRING.sub(b"", data)) > MOST_VALUES:
        raise JSONFault(f"has more than {MOST_VALUES:,} values, which no model's has")
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except UnicodeDecodeError:
        raise JSONFault("is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise JSONFault("is not JSON") from None


def shown(text: str) -> str:
    """Text from a file as it may stand in a message: printable, short, quoted."""
    clean = "".join(c if c.isprintable() else "?" for c in text[:120])
    return f"'{clean}…'" if len(text) > 120 else f"'{clean}'"


def _separators(data: bytes) -> int:
    return sum(map(data.count, (b",", b"[", b"{")))


def _integer(text: str) -> int | float:
    if len(text) > _DIGITS:
        return -math.inf if text.startswith("-") else math.inf
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise JSONFault(f"names {shown(name)} twice")
    return result
