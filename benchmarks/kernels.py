"""How near the kernels come to what this machine can do, by shape and number of tokens.

    python benchmarks/kernels.py [--isas avx2] [--layouts 2-bit] [--threads 1 2]
                                 [--tokens 1 8 256] [--json FILE]

Products of the projections of the 2B4T shape, in each layout of the weights and in the order in
which they lie, and the first pass over its head, with weights that come from memory, not from a
cache. Of matrices of which rows or columns may be skipped, also products with what counts alone.
Each shape stands beside the machine's own limits, measured just before and just after it: a step
must read its weights (GB/s of reading memory) and multiply them (GMAC/s of u8 x s8 into 16 bits, or
what the instruction set has for that). The limit that needs longer is the one that a kernel is near
or far from, and its name stands in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cli
from facts import RESULTS, check, facts, measured, write

from trilobit import _native
from trilobit.layouts import native_layout, native_order
from trilobit.model.packing import LAYOUTS, PLACES, Layout, Order
from trilobit.model.shapes import shape

TOKENS = (1, 2, 4, 8, 16, 64, 256)
MOST_TOKENS = 1 << 12
SCREEN_TOKENS = 16  # more hidden states than that are seldom sampled in one step
SKIPPING_TOKENS = 16  # more than that seldom take rows and columns of their own
# Behind relu² as random weights open the gates, and as training does: shares of rows and columns.
SHARES: dict[Order, tuple[float, ...]] = {"rows": (0.5, 0.2), "columns": (0.33, 0.1)}


@dataclass(frozen=True)
class Kernel:
    """A matrix and the kernel that reads it."""

    name: str
    rows: int
    columns: int
    bits: float  # of a weight
    seconds: Callable[[str, int, int, int, int, int], list[float]]
    most_tokens: int = MOST_TOKENS
    share: float = 1  # of the rows or columns, that counts for a token

    def read(self, tokens: int) -> float:
        """Weights that so many tokens read: what counts for any of them."""
        return self.rows * self.columns * (1 - (1 - self.share) ** tokens)

    def products(self, tokens: int) -> float:
        return self.rows * self.columns * self.share * tokens


def kernels(layouts: list[Layout]) -> Iterator[Kernel]:
    config = shape("2b4t")
    hidden, ffn = config.hidden_size, config.intermediate_size
    kv = config.num_key_value_heads * config.head_dim
    matrices: tuple[tuple[str, int, int, Order], ...] = (
        ("q, o", hidden, hidden, "groups"),
        ("k, v", kv, hidden, "groups"),
        ("gate", ffn, hidden, "groups"),
        ("up", ffn, hidden, "rows"),
        ("down", hidden, ffn, "columns"),
    )
    for name, rows, columns, order in matrices:
        for layout in layouts:
            lies = {"layout": native_layout(layout), "order": native_order(order)}
            bits = 8 / PLACES[layout]
            yield Kernel(name, rows, columns, bits, partial(_native.linear_seconds, **lies))
            for share in SHARES.get(order, ()):
                yield Kernel(
                    f"{name}, {share:.0%} of the {order}",
                    rows,
                    columns,
                    bits,
                    partial(_sparse_seconds, share=share, **lies),
                    SKIPPING_TOKENS,
                    share,
                )
    yield Kernel(
        "head, coarse", config.vocab_size, hidden, 2, _native.screen_seconds, SCREEN_TOKENS
    )


def _sparse_seconds(
    isa: str, rows: int, columns: int, tokens: int, threads: int, repeats: int, **how: Any
) -> list[float]:
    return _native.sparse_seconds(
        isa, rows, columns, tokens=tokens, threads=threads, repeats=repeats, **how
    )


def measure(
    kernel: Kernel, isa: str, threads: int, tokens: list[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """One result for each number of tokens."""
    before = limits(isa, threads)
    several = {
        n: kernel.seconds(isa, kernel.rows, kernel.columns, n, threads, repeats)
        for n in tokens
        if n <= kernel.most_tokens
    }
    after = limits(isa, threads)
    dram, int8 = (max(pair) for pair in zip(before, after, strict=True))
    for n, seconds in several.items():
        gigabytes = kernel.read(n) * kernel.bits / 8e9
        gmac = kernel.products(n) / 1e9
        at_least = {"reads": gigabytes / dram, "products": gmac / int8}
        bound = max(at_least, key=lambda name: at_least[name])
        yield {
            "kernel": kernel.name,
            "rows": kernel.rows,
            "columns": kernel.columns,
            "bits": kernel.bits,
            "share": kernel.share,
            "isa": isa,
            "threads": threads,
            "tokens": n,
            "gb_per_s": measured([gigabytes / s for s in seconds]),
            "gmac_per_s": measured([gmac / s for s in seconds]),
            "dram_read_gb_per_s": [before[0], after[0]],
            "int8_gmac_per_s": [before[1], after[1]],
            "bound_by": bound,
            "fraction_of_bound": measured([at_least[bound] / s for s in seconds]),
        }


def limits(isa: str, threads: int) -> tuple[float, float]:
    """GB/s of reading memory, GMAC/s of int8 products."""
    return (
        round(_native.dram_read_gb_per_s(threads, 5, isa), 2),
        round(_native.int8_gmac_per_s(threads, 5, isa), 2),
    )


def show(results: list[dict[str, Any]]) -> None:
    first = results[0]
    dram, int8 = first["dram_read_gb_per_s"], first["int8_gmac_per_s"]
    print(
        f"\n{first['kernel']}  {first['rows']} x {first['columns']}, {first['bits']:g} bits;  "
        f"{first['isa']}, {first['threads']} threads;  machine, before and after: "
        f"{dram[0]:.1f} {dram[1]:.1f} GB/s, {int8[0]:.0f} {int8[1]:.0f} GMAC/s"
    )
    print(f"{'tokens':>8}{'GB/s':>9}{'GMAC/s':>9}   of the limit")
    for one in results:
        fraction = one["fraction_of_bound"]
        print(
            f"{one['tokens']:8}{one['gb_per_s']['median']:9.2f}{one['gmac_per_s']['median']:9.1f}"
            f"   {fraction['median']:.0%} of {one['bound_by']} "
            f"({fraction['least']:.0%} to {fraction['most']:.0%})"
        )


def main() -> None:
    fast = [isa for isa in _native.isas() if isa != "scalar"] or ["scalar"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isas", nargs="+", choices=_native.isas(), default=fast)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=cli.whole(1, MOST_TOKENS), nargs="+", default=list(TOKENS))
    parser.add_argument("--repeats", type=cli.whole(), default=7)
    parser.add_argument("--json", type=Path, default=RESULTS / "kernels.json")
    arguments = parser.parse_args()
    check(arguments.json)
    about, results = facts(), []
    for isa in arguments.isas:
        for threads in arguments.threads:
            for kernel in kernels(arguments.layouts):
                found = list(measure(kernel, isa, threads, arguments.tokens, arguments.repeats))
                if found:
                    show(found)
                results += found
    print()
    write(arguments.json, {**about, "repeats": arguments.repeats, "results": results})


if __name__ == "__main__":
    cli.run(main)
