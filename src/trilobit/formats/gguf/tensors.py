"""What a GGUF header says of tensors, and whether it can be: no overlaps, no holes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.gguf.header import CUT_OFF, DAMAGED, U32, U64, Cursor, shown
from trilobit.formats.gguf.types import Q2_0, Q2_0_GROUPS, Q2_0_OF_128, REFUSED, TYPES, GGMLType

_LONGEST_NAME = 64  # bytes, by the format
_MOST_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type, row-major shape and place (bytes from the start of the file) of a tensor."""

    type: GGMLType
    type_id: int
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> str:
        """Name of the type."""
        return self.type.name

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the header says of a tensor."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int


def read_claims(cursor: Cursor, count: int) -> list[_Claim]:
    """What the header says of its tensors, each possible in itself."""
    claims, known = [], set()
    for _ in range(count):
        name = cursor.name("a tensor", _LONGEST_NAME)
        if name in known:
            raise FormatError(f"{cursor.path}: tensor {shown(name)} is there twice; {DAMAGED}")
        known.add(name)
        claims.append(_claim(cursor, name))
    return claims


def _claim(cursor: Cursor, name: str) -> _Claim:
    what = f"tensor {shown(name)}"
    dimensions = cursor.number(U32, what)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise FormatError(
            f"{cursor.path}: {what} has {dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}; "
            f"{DAMAGED}"
        )
    shape = tuple(cursor.number(U64, what) for _ in range(dimensions))[::-1]
    if not all(0 < size < 1 << 48 for size in shape):
        raise FormatError(f"{cursor.path}: {what} has the impossible shape {shape}; {DAMAGED}")
    type_id: int = cursor.number(U32, what)
    if type_id in REFUSED:
        raise UnsupportedModel(f"{cursor.path}: {what}: type {type_id} {REFUSED[type_id]}")
    if type_id not in TYPES:
        raise UnsupportedModel(
            f"{cursor.path}: {what} has the unknown type {type_id}; take another file of this model"
        )
    return _Claim(name, type_id, shape, cursor.number(U64, what))


def places(
    cursor: Cursor, claims: list[_Claim], alignment: int
) -> tuple[dict[str, TensorInfo], int | None]:
    """Where the tensors lie, and how many weights share a scale in Q2_0, if any has that type."""
    if not any(claim.type_id == Q2_0 for claim in claims):
        return _place(cursor, claims, alignment, TYPES.__getitem__), None
    fitting: dict[int, dict[str, TensorInfo]] = {}
    for group in Q2_0_GROUPS:
        types = TYPES if group == 64 else {**TYPES, Q2_0: Q2_0_OF_128}
        try:
            fitting[group] = _place(cursor, claims, alignment, types.__getitem__)
        except FormatError:
            continue
    if len(fitting) != 1:
        fit = "both groups of 64 and" if fitting else "neither groups of 64 nor"
        raise FormatError(f"{cursor.path}: its Q2_0 tensors fit {fit} of 128 weights; {CUT_OFF}")
    group, tensors = fitting.popitem()
    return tensors, group


def _place(
    cursor: Cursor, claims: list[_Claim], alignment: int, type_of: Callable[[int], GGMLType]
) -> dict[str, TensorInfo]:
    path, size = cursor.path, cursor.size
    start = cursor.position
    position = start = _aligned(start, alignment) if claims else start
    tensors: dict[str, TensorInfo] = {}
    for claim in sorted(claims, key=lambda claim: claim.offset):
        kind = type_of(claim.type_id)
        length = kind.size_bytes(claim.shape)
        what = f"tensor {shown(claim.name)}"
        if length is None:
            raise FormatError(
                f"{path}: {what} of shape {claim.shape} does not fill blocks of {kind.block} "
                f"weights, as {kind.name} needs; {DAMAGED}"
            )
        begin = start + claim.offset
        if begin % alignment:
            raise FormatError(
                f"{path}: {what} begins at byte {begin}, no multiple of {alignment}; {DAMAGED}"
            )
        if begin != _aligned(position, alignment):
            wrong = "overlaps another" if begin < position else "leaves a hole before it"
            raise FormatError(f"{path}: {what} {wrong}; {DAMAGED}")
        position = begin + length
        if position > size:
            raise FormatError(
                f"{path}: {what} ends at byte {position}, but the file has {size}; {CUT_OFF}"
            )
        tensors[claim.name] = TensorInfo(kind, claim.type_id, claim.shape, begin, position)
    if size > _aligned(position, alignment):
        raise FormatError(
            f"{path}: the tensors end at byte {position}, but the file has {size}; {DAMAGED}"
        )
    return {claim.name: tensors[claim.name] for claim in claims}


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
