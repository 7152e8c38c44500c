"""Text as UTF-8. Python's texts may hold what has none: bytes of an argument or a terminal that are
no UTF-8 arrive as lone surrogates, and JSON can spell half a character ("\\ud800").
"""

from __future__ import annotations

from trilobit.errors import RequestError

_BYTES = range(0xDC80, 0xDD00)  # how Python keeps a byte that it could not decode (PEP 383)


def utf8(text: str, what: str = "the text") -> bytes:
    """The bytes of a text; RequestError, which names it, where it has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"the byte 0x{code - 0xDC00:02x}" if code in _BYTES else "half a character"
        raise RequestError(
            f"{what}: not UTF-8 text ({found} at character {error.start + 1}); give it in UTF-8"
        ) from None
