"""The machine's own limits, measured in a process of their own.

Decoding reads every weight once a token, so its limit is the rate of reading memory; prefill
multiplies every weight with every token, so its limit is the rate of int8 products. Both move
between runs on shared machines: they are measured beside every run of a model, and apart from it,
because the 512 MB that are read would count as the model's memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Medians of a few passes: GB/s (10^9) of reading, and 10^9 u8 × s8 multiply-adds a second."""

    dram_read_gb_per_s: float
    int8_gmac_per_s: float


def measure_limits(threads: int) -> Limits:
    """Run this module in another process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(threads)], capture_output=True, text=True, check=True
    )
    return Limits(**json.loads(done.stdout))


def _main() -> None:
    from trilobit import _native

    threads = int(sys.argv[1])
    print(
        json.dumps(
            {
                "dram_read_gb_per_s": _native.dram_read_gb_per_s(threads, 5),
                "int8_gmac_per_s": _native.int8_gmac_per_s(threads, 5),
            }
        )
    )


if __name__ == "__main__":
    _main()
