"""Which layout the ternary weights of a model have in memory, of those that a caller may wish."""

from __future__ import annotations

from ..errors import RequestError
from ..formats.fastest import fastest_layout
from ..formats.packed import PackedModel
from ..packing import LAYOUTS, Layout, LayoutChoice


def chosen_layout(
    layout: LayoutChoice | None, packed: PackedModel, threads: int, name: str
) -> Layout:
    """The layout asked for: by None, the file's; by "auto", what is faster on `threads` here.

    Raises RequestError for one that does not exist, or that the model `name` cannot have.
    """
    if layout is None:
        return packed.layout
    if layout == "auto":
        return fastest_layout(packed.config, threads)
    if layout not in LAYOUTS:
        known = ", ".join(map(repr, LAYOUTS))
        raise RequestError(f"layout is {layout!r}; expected {known}, 'auto' or None")
    if layout != "2-bit" and packed.config.scales == "group":
        raise RequestError(
            f"{name}: its scales are by group, which the {layout} layout does not hold; leave out "
            "layout, or give it 2-bit"
        )
    return layout
