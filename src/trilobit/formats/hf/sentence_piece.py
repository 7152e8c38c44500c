"""SentencePiece's `tokenizer.model`: pieces, their scores and types.

The file is a protocol buffer (sentencepiece_model.proto); BPE needs a few of its fields.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.files import read_bytes

REMEDY = (
    "make a tokenizer.json of it with transformers: "
    "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
)
# Field numbers of ModelProto and the messages in it.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES = 2, 3, 4
_BPE = 2
_NORMAL = 1
_TYPES = range(1, 7)
# How a protocol buffer stores a field: a number, eight bytes, a length and so many bytes, four.
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_LONGEST_VARINT = 10
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Texts, scores and types of pieces by id; adds_space: a text begins with a space."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    adds_space: bool


def read_pieces(path: Path) -> Pieces:
    """The pieces of a `tokenizer.model`.

    Raises FormatError for a damaged file, UnsupportedModel for what is not plain BPE.
    """
    data = read_bytes(path)
    if _TIKTOKEN.match(data):
        raise UnsupportedModel(f"{path}: ranks of tiktoken, which do not split text; {REMEDY}")
    try:
        return _pieces(data)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path}: {error}; {REMEDY}") from None
    except (FormatError, UnicodeDecodeError, struct.error):
        raise FormatError(f"{path}: not a SentencePiece model; download it again") from None


def _pieces(data: bytes) -> Pieces:
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == _PIECES:
            piece = dict(_fields(_bytes(value)))
            texts.append(_bytes(piece.get(_TEXT)).decode("utf-8"))
            scores.append(struct.unpack("<f", _bytes(piece.get(_SCORE, bytes(4))))[0])
            types.append(_integer(piece.get(_TYPE, _NORMAL)))
        elif number == _TRAINER:
            trainer = dict(_fields(_bytes(value)))
        elif number == _NORMALIZER:
            normalizer = dict(_fields(_bytes(value)))
    if not texts or not set(types) <= set(_TYPES) or len(set(texts)) != len(texts):
        raise FormatError("no pieces, or impossible ones")
    if any(score != score for score in scores):
        raise FormatError("a score is NaN")
    if trainer.get(_MODEL_TYPE, 1) != _BPE:
        raise UnsupportedModel("a SentencePiece model of another kind than BPE")
    if normalizer.get(_CHARSMAP) or normalizer.get(_EXTRA_SPACES, 1):
        raise UnsupportedModel("a SentencePiece model that changes text before it is split")
    space = bool(normalizer.get(_DUMMY_PREFIX, 1))
    return Pieces(texts=texts, scores=scores, types=types, adds_space=space)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a message; FormatError where it ends too early."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise FormatError("an unknown kind of field")
        if size > len(data) - at:
            raise FormatError("a field ends behind its message")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    number = 0
    for i, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    raise FormatError("a number without end")


def _bytes(value: int | bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError("a field of another kind")
    return value


def _integer(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise FormatError("a field of another kind")
    return value
