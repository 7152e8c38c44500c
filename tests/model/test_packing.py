"""The packed layouts: what lies where, what is refused, and from one to the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trilobit import _native
from trilobit.errors import FormatError
from trilobit.layouts import native_layout, native_order
from trilobit.model import packing
from trilobit.model.packing import LAYOUTS, ORDERS, PLACES, Layout, Order

layouts = pytest.mark.parametrize("layout", LAYOUTS)
orders = pytest.mark.parametrize("order", ORDERS)


def codes(most_rows: int = 40, most_columns: int = 100) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, most_rows), st.integers(1, most_columns))
    return shapes.flatmap(lambda shape: arrays.arrays(np.int8, shape, elements=st.integers(-1, 1)))


def code_of(byte: int, place: int, layout: Layout) -> int:
    """The code of one place of a byte, as docs/format.md says it."""
    if layout == "2-bit":
        return byte >> 2 * place & 3
    for _ in range(place):
        byte = 3 * byte % 256
    return 3 * byte // 256


@layouts
@orders
@given(w=codes())
def test_unpack_inverts_pack(w: np.ndarray, layout: Layout, order: Order) -> None:
    packed = packing.pack(w, layout, order)
    assert packed.shape == packing.packed_shape(*w.shape, layout, order)
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    assert np.array_equal(packing.unpack(packed, *w.shape, layout, order), w)


@layouts
@given(w=codes())
def test_every_code_lies_where_the_layout_says(w: np.ndarray, layout: Layout) -> None:
    data = packing.pack(w, layout).tobytes()
    rows, columns = w.shape
    wide = 4 * PLACES[layout]
    blocks = -(-columns // wide)
    for n in range(-(-rows // 16) * 16):
        for k in range(blocks * wide):
            byte = data[((n // 16 * blocks + k // wide) * 16 + n % 16) * 4 + k % 4]
            inside = n < rows and k < columns
            assert code_of(byte, k % wide // 4, layout) == (w[n, k] + 1 if inside else 1)


@layouts
@given(w=codes())
def test_every_code_of_a_line_lies_where_the_layout_says(w: np.ndarray, layout: Layout) -> None:
    packed = packing.pack(w, layout, "rows")
    assert np.array_equal(packing.pack(w.T, layout, "columns"), packed)
    rows, columns = w.shape
    wide = 4 * PLACES[layout]
    assert packed.shape[1] % 64 == 0
    for n in range(rows):
        for k in range(packed.shape[1] // 4 * wide):
            code = code_of(int(packed[n, k // wide * 4 + k % 4]), k % wide // 4, layout)
            assert code == (w[n, k] + 1 if k < columns else 1)


def test_a_byte_of_two_bits_worked_out_by_hand() -> None:
    # Row 19 of 20, columns 18, 22, 26 and 30 of 32: byte 2 of row 3 in group 1, block 1.
    w = np.zeros((20, 32), np.int8)
    w[19, [18, 22, 26, 30]] = [1, -1, 0, 1]
    packed = packing.pack(w)
    assert packed.shape == (2, 2, 16, 4)
    assert packed[1, 1, 3, 2] == 0b10_01_00_10
    # at byte ((group 1 * 2 blocks + block 1) * 16 rows + row 3) * 4 + 2
    assert packed.tobytes()[206] == 0b10_01_00_10


def test_a_byte_of_base_3_worked_out_by_hand() -> None:
    # Row 19 of 20, columns 22, 26, 30, 34 and 38 of 40: byte 2 of row 3 in group 1, block 1.
    w = np.zeros((20, 40), np.int8)
    w[19, [22, 26, 30, 34, 38]] = [1, -1, 0, 1, -1]
    packed = packing.pack(w, "1.6-bit")
    assert packed.shape == (2, 2, 16, 4)
    # 81 - 27 + 0 + 3 - 1 = 56; 56 * 256 / 243 = 58.995...
    assert packed[1, 1, 3, 2] == 128 + 59
    assert packed.tobytes()[206] == 187


@layouts
@pytest.mark.parametrize(("rows", "columns"), [(33, 128), (32, 161), (16, 128), (32, 0)])
def test_a_shape_that_does_not_fit_is_refused(rows: int, columns: int, layout: Layout) -> None:
    packed = packing.pack(np.zeros((32, 128), np.int8), layout)
    with pytest.raises(FormatError, match="does not hold"):
        packing.unpack(packed, rows, columns, layout)


@layouts
@pytest.mark.parametrize(
    ("rows", "columns", "place"),
    [
        (17, 120, (1, 0, 1, 0)),  # row 17
        (17, 120, (1, 0, 15, 3)),  # row 31
        (16, 21, (0, 1, 0, 1)),  # beside column 20
        (16, 21, (0, 1, 15, 3)),
    ],
)
@pytest.mark.parametrize("weight", [-1, 1])
def test_padding_other_than_zero_weights_is_refused(
    rows: int, columns: int, place: tuple[int, int, int, int], weight: int, layout: Layout
) -> None:
    packed = packing.pack(np.zeros((rows, columns), np.int8), layout)
    one = np.zeros((1, 4 * PLACES[layout]), np.int8)
    one[0, -4] = weight  # at byte 0's last place
    packed[place] = packing.pack(one, layout)[0, 0, 0, 0]
    with pytest.raises(FormatError, match="padding"):
        packing.unpack(packed, rows, columns, layout)


@layouts
@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("byte", [20, 63])  # of a line of 64 bytes, of which 4 * 5 hold 80 or 100
def test_padding_of_lines_other_than_zero_weights_is_refused(
    byte: int, order: Order, layout: Layout
) -> None:
    length = 5 * 4 * PLACES[layout]
    shape = (3, length) if order == "rows" else (length, 3)
    packed = packing.pack(np.zeros(shape, np.int8), layout, order)
    packed[2, byte] = packing.weight_bytes(layout)[0]
    with pytest.raises(FormatError, match="padding"):
        packing.unpack(packed, *shape, layout, order)


@layouts
def test_only_bytes_that_are_weights_are_taken(layout: Layout) -> None:
    weights = set(packing.weight_bytes(layout).tolist())
    assert len(weights) == 3 ** PLACES[layout]
    for byte in range(256):
        packed = packing.pack(np.zeros((16, 80), np.int8), layout)
        packed[0, 1, 5, 2] = byte
        assert _native.check_codes(packed, 1, native_layout(layout)) == (byte in weights)
        if byte in weights:
            packing.check_codes(packed, layout)
        else:
            with pytest.raises(FormatError, match="damaged"):
                packing.check_codes(packed, layout)


@given(w=codes())
def test_the_core_packs_anew_what_numpy_packs(w: np.ndarray) -> None:
    forms = list(itertools.product(LAYOUTS, ORDERS))
    for (old, old_order), (new, new_order) in itertools.product(forms, forms):
        found = _native.repacked(
            packing.pack(w, old, old_order).reshape(-1),
            *w.shape,
            native_layout(old),
            native_layout(new),
            native_order(old_order),
            native_order(new_order),
            2,
        )
        assert np.array_equal(found, packing.pack(w, new, new_order).reshape(-1))
