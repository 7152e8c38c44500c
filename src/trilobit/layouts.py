"""Which layout the ternary weights of a model get: the rule, for files and for memory."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from trilobit.errors import RequestError
from trilobit.machine import available_cores, memory_bytes
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import LAYOUTS, PLACES, Layout, LayoutChoice, Order

if TYPE_CHECKING:
    from trilobit import _native

# Below this caches hold the weights, and what has less to compute is faster.
_STREAMED_BYTES = 64_000_000
_ROWS, _COLUMNS = 6912, 2560  # of the matrix that is measured
# Of the rows of up_proj and columns of down_proj, those that a token of a trained model meets.
_SHARES: dict[Order, float] = {"rows": 0.2, "columns": 0.1}
# Several tokens at once cost more in base 3: it has to be worth while for one.
_GAIN = 0.95
# Of the memory, that weights may take and leave room for keys, values and other programs.
_ROOM = 0.8


def chosen_layout(
    wish: LayoutChoice | None,
    config: ModelConfig,
    *,
    name: str,
    own: Layout = "2-bit",
    threads: int | None = None,
    embeds: bool = False,
) -> Layout:
    """The layout that is wished for: by None the model's own, by "auto" what is faster here.

    name: of the model, for messages. embeds: it makes vectors, of many tokens at once, which 2 bits
    suit better anywhere. threads: default the physical cores. RequestError for a layout that the
    model cannot have.
    """
    if wish is None:
        return own
    if wish not in (*LAYOUTS, "auto"):
        raise RequestError(f"layout is {wish!r:.60}; expected {', '.join(LAYOUTS)} or auto")
    if wish == "auto":
        return "2-bit" if embeds else fastest_layout(config, threads)
    if wish != "2-bit" and config.scales == "group":
        raise RequestError(
            f"{name}: its scales are by group, which the {wish} layout does not hold; leave out "
            "layout, or give it 2-bit"
        )
    return wish


def fastest_layout(config: ModelConfig, threads: int | None = None) -> Layout:
    """The layout in which a token passes the weights sooner, measured once (half a second).

    "1.6-bit" if the weights do not fit into the memory otherwise; "2-bit" if caches hold them, or
    scales are by group. threads: default the physical cores.
    """
    weights_bytes = config.ternary_parameters / PLACES["2-bit"]
    if config.scales == "group" or weights_bytes < _STREAMED_BYTES:
        return "2-bit"
    memory = memory_bytes()
    if memory is not None and weights_bytes > _ROOM * memory:
        return "1.6-bit"
    threads = available_cores() if threads is None else threads
    weights: dict[Order, int] = {}
    for name, (rows, columns) in tensor_names.all_projections(config):
        order = tensor_names.order(config, name)
        weights[order] = weights.get(order, 0) + rows * columns
    seconds = {
        layout: sum(count * _seconds(threads, order)[layout] for order, count in weights.items())
        for layout in LAYOUTS
    }
    return "1.6-bit" if seconds["1.6-bit"] < _GAIN * seconds["2-bit"] else "2-bit"


def native_layout(layout: Layout) -> _native.Layout:
    """What the native module calls it."""
    from trilobit import _native

    return {"2-bit": _native.Layout.two_bit, "1.6-bit": _native.Layout.base3}[layout]


def native_order(order: Order) -> _native.Order:
    """What the native module calls it."""
    from trilobit import _native

    return {
        "groups": _native.Order.groups,
        "rows": _native.Order.rows,
        "columns": _native.Order.columns,
    }[order]


@cache
def _seconds(threads: int, order: Order) -> dict[Layout, float]:
    """Of one token's product with a matrix, as its order has it read: all, or what counts."""
    from trilobit import _native

    def seconds(layout: Layout) -> list[float]:
        isa, lies = _native.isa(), native_layout(layout)
        if order == "groups":
            return _native.linear_seconds(isa, _ROWS, _COLUMNS, 1, threads, 5, lies)
        share, alone = _SHARES[order], native_order(order)
        return _native.sparse_seconds(isa, _ROWS, _COLUMNS, alone, share, 1, threads, 5, lies)

    return {layout: min(seconds(layout)) for layout in LAYOUTS}
