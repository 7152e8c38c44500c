"""The packed layouts of ternary matrices, in numpy. The kernels read them as they lie in the file.

A code is `w + 1`: 0, 1 or 2. Rows and columns are padded with the code 1 (a zero weight); any other
padding is refused, so that a matrix has one packed form of each layout and order. In the order
"groups", 16 rows make a group, and 64 bytes of it a block: four bytes of row 0, then of rows 1 to
15. Column c of a block stands in byte c % 4 of its row, at place c // 4:

    packed[rows/16, columns/(4 * places), 16, 4]

so that a thread which owns some rows reads one linear stream, and one place of all 64 bytes is 16
rows by four columns: rows lie in the lanes of a vector (of 4, 8 or 16 int32 lanes), all lanes meet
the same four activations, and no sum has to be taken across lanes. Codes are never negative: the
kernel sums `code * x̃` as unsigned × signed and subtracts `sum(x̃)`, which it computes once for all
rows.

Where a product skips what is zero, what it skips lies alone. In the order "rows" a row is one line,
of the four bytes that it has of each block; in the order "columns" a column is, as if the matrix
were transposed. Lines are padded to cache lines, of `LINE` bytes:

    packed[lines, bytes]

"2-bit": a byte has four places of two bits, the lowest first. A shift and a mask take one out.

"1.6-bit": a byte has five places, the digits of a number in base 3, the first place the highest. It
holds that number u of 0 to 242 as a fraction of 1, in the middle of its share of the 256 bytes:

    byte = 128 + round((u - 121) * 256 / 243)

Its first digit is then ⌊3 byte / 256⌋, and (3 byte) mod 256 is the fraction of the digits behind
it. 13 bytes stand for no number. A fifth less to read and to hold than 2 bits, and more to compute:
faster where the memory is the limit. Not for scales by groups of 128 columns, which blocks of 20 do
not divide.
"""

# N rows (outputs), K columns (inputs)

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError

Layout = Literal["2-bit", "1.6-bit"]
LayoutChoice = Layout | Literal["auto"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PLACES: dict[Layout, int] = {"2-bit": 4, "1.6-bit": 5}  # codes of a byte
Order = Literal["groups", "rows", "columns"]
ORDERS: tuple[Order, ...] = get_args(Order)
ROWS = 16  # rows interleaved in one block
LINE = 64  # bytes of a row or column that lies alone are a multiple

_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)
_POWERS = np.array([81, 27, 9, 3, 1], dtype=np.uint8)
_BYTES = (128 + np.rint((np.arange(243) - 121) * 256 / 243)).astype(np.uint8)  # of the numbers
_DAMAGED = "the file is damaged: download or convert it again"


def _digits() -> NDArray[np.uint8]:
    """The five digits of every byte `[256, 5]`; 3 in bytes that stand for no number."""
    digits = np.full((256, 5), 3, dtype=np.uint8)
    digits[_BYTES] = np.arange(243)[:, None] // _POWERS % 3
    return digits


_DIGITS = _digits()


def block_columns(layout: Layout) -> int:
    """Columns of one block."""
    return 4 * PLACES[layout]


def weight_bytes(layout: Layout) -> NDArray[np.uint8]:
    """Every byte that stands for ternary weights."""
    if layout == "1.6-bit":
        return _BYTES
    every: NDArray[np.uint8] = np.arange(256, dtype=np.uint8)
    ternary: NDArray[np.bool_] = (every & (every >> 1) & np.uint8(0x55)) == 0
    return every[ternary]


def packed_shape(
    rows: int, columns: int, layout: Layout = "2-bit", order: Order = "groups"
) -> tuple[int, ...]:
    """Shape of the packed array of a `[rows, columns]` matrix, in bytes."""
    if order == "groups":
        return -(-rows // ROWS), -(-columns // block_columns(layout)), ROWS, 4
    lines, length = (columns, rows) if order == "columns" else (rows, columns)
    return lines, -(-4 * -(-length // block_columns(layout)) // LINE) * LINE


def pack(
    codes_NK: NDArray[np.int8], layout: Layout = "2-bit", order: Order = "groups"
) -> NDArray[np.uint8]:
    """Pack ternary codes -1, 0 and 1 `[N, K]`."""
    stored: NDArray[np.uint8] = codes_NK.view(np.uint8) + np.uint8(1)  # -1 wraps to 255, +1 gives 0
    if stored.max(initial=0) > 2:
        raise FormatError("weights to pack are not all -1, 0 or 1")
    return pack_stored(stored, layout, order)


def pack_stored(
    stored_NK: NDArray[np.uint8], layout: Layout = "2-bit", order: Order = "groups"
) -> NDArray[np.uint8]:
    """Pack codes as they are stored, `[N, K]`: 0 to 2, or to 3 in two bits."""
    shape = packed_shape(stored_NK.shape[0], stored_NK.shape[1], layout, order)
    places = PLACES[layout]
    lines = stored_NK.T if order == "columns" else stored_NK
    rows, columns = lines.shape
    held = (shape[0] * ROWS, shape[1] * 4) if order == "groups" else shape
    u: NDArray[np.uint8] = np.ones((held[0], held[1] * places), dtype=np.uint8)
    u[:rows, :columns] = lines
    if order == "groups":
        u = u.reshape(shape[0], ROWS, shape[1], places, 4).transpose(0, 2, 1, 3, 4)
    else:
        u = u.reshape(rows, -1, places, 4)
    packed = np.zeros((*u.shape[:-2], 4), dtype=np.uint8)
    for place in range(places):
        if layout == "2-bit":
            packed |= u[..., place, :] << _SHIFTS[place]
        else:
            packed += u[..., place, :] * _POWERS[place]
    return (packed if layout == "2-bit" else _BYTES[packed]).reshape(shape)


def unpack(
    packed: NDArray[np.uint8],
    rows: int,
    columns: int,
    layout: Layout = "2-bit",
    order: Order = "groups",
) -> NDArray[np.int8]:
    """Ternary codes `[rows, columns]` of a packed array.

    FormatError when the shape does not fit, a byte stands for no weights, or the padding is not
    zero weights.
    """
    shape = packed_shape(rows, columns, layout, order)
    if packed.shape != shape:
        raise FormatError(
            f"packed shape {packed.shape} does not hold {rows} rows of {columns} columns; "
            f"expected {shape}"
        )
    check_codes(packed, layout)
    check_padding(packed, rows, columns, layout, order)
    if order == "columns":
        return np.ascontiguousarray(_line_weights(packed, layout)[:, :rows].T)
    if order == "rows":
        return np.ascontiguousarray(_line_weights(packed, layout)[:, :columns])
    return _weights(packed, layout)[:rows, :columns]


def check_codes(packed: NDArray[np.uint8], layout: Layout = "2-bit") -> None:
    """FormatError when a code is 3, or a byte no number, which no ternary weights map to."""
    if layout == "2-bit" and (packed & (packed >> 1) & np.uint8(0x55)).any():
        raise FormatError(f"a packed weight has code 3, which is no ternary value; {_DAMAGED}")
    if layout == "1.6-bit" and (_DIGITS[:, 0] == 3)[packed].any():
        raise FormatError(f"a packed byte stands for no five ternary values; {_DAMAGED}")


def check_padding(
    packed: NDArray[np.uint8],
    rows: int,
    columns: int,
    layout: Layout = "2-bit",
    order: Order = "groups",
) -> None:
    """FormatError when rows or columns beyond the matrix hold other weights than zero."""
    if order == "groups":
        wrong = _group_padding(packed, rows, columns, layout)
    else:
        whole, last = divmod(rows if order == "columns" else columns, block_columns(layout))
        wrong = bool(_line_weights(packed[:, 4 * whole :], layout)[:, last:].any())
    if wrong:
        raise FormatError(
            "the padding of packed weights is not zero; the file is damaged: convert it again"
        )


def _group_padding(packed: NDArray[np.uint8], rows: int, columns: int, layout: Layout) -> bool:
    last_row, last_column = rows % ROWS, columns % block_columns(layout)
    return bool(
        (last_row and _weights(packed[-1:], layout)[last_row:].any())
        or (last_column and _weights(packed[:, -1:], layout)[:, last_column:].any())
    )


def _places(packed: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Codes `[..., places, 4]` of words `[..., 4]`."""
    if layout == "2-bit":
        codes: NDArray[np.uint8] = packed[..., None, :] >> _SHIFTS[:, None] & np.uint8(3)
        return codes
    return _DIGITS[packed].swapaxes(-1, -2)


def _weights(packed: NDArray[np.uint8], layout: Layout) -> NDArray[np.int8]:
    """Codes less one of groups, padding included."""
    u = _places(packed, layout).transpose(0, 2, 1, 3, 4).reshape(packed.shape[0] * ROWS, -1)
    return u.view(np.int8) - np.int8(1)


def _line_weights(packed: NDArray[np.uint8], layout: Layout) -> NDArray[np.int8]:
    """Codes less one of lines, padding included."""
    words = packed.reshape(len(packed), -1, 4)
    return _places(words, layout).reshape(len(packed), -1).view(np.int8) - np.int8(1)
