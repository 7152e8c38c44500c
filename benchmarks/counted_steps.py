"""What instructions.py has callgrind count: the same steps of the bundled model every time.

    valgrind --tool=callgrind --instr-atstart=no python benchmarks/counted_steps.py MARKS

MARKS is the library made of callgrind_marks.c. Nothing here depends on what was computed: token
ids and positions are fixed, and a decode step is repeated at one position, so that its KV cache
has one length. One thread, so that nobody spins. A part runs once before it is counted.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import cli
import numpy as np

from trilobit import _native
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.engine.blocks import BLOCK
from trilobit.engine.native import open_decoder
from trilobit.formats.packed.reader import PackedModel

PROMPT = 64  # tokens
SEQUENCES = 8
BLOCKS = PROMPT // BLOCK + 1  # of a sequence


def main() -> None:
    marks = ctypes.CDLL(sys.argv[1])
    packed = PackedModel(bundled_models()[DEFAULT])
    full, screened = (Steps(packed, screened=flag) for flag in (False, True))
    for name, part in (
        (f"prefill, {PROMPT} tokens", full.prefill),
        ("decode, 1 sequence", full.decode),
        ("head, full", full.choose),  # of the step before
        ("head, screened", screened.choose),
        (f"decode, {SEQUENCES} sequences", full.decode_several),
    ):
        count(marks, name, part)


def count(marks: ctypes.CDLL, name: str, part: Callable[[], object]) -> None:
    part()
    marks.begin()
    part()
    marks.end(name.encode("ascii"))


class Steps:
    """Steps of one decoder, which begins with a prompt and a token after it in its cache.

    What stands in the caches of the other sequences does not matter: nothing is chosen there.
    """

    def __init__(self, packed: PackedModel, *, screened: bool) -> None:
        config = packed.config
        self.decoder = open_decoder(
            config,
            packed.arrays(screened=screened),
            threads=1,
            batch_tokens=PROMPT,
            blocks=SEQUENCES * BLOCKS,
            kv_dtype="f16",
        )
        random = np.random.default_rng(0)
        self.ids = random.integers(0, config.vocab_size, (SEQUENCES, PROMPT + 1), dtype=np.int32)
        self.tables = np.arange(SEQUENCES * BLOCKS, dtype=np.int32).reshape(SEQUENCES, BLOCKS)
        self.sampler = _native.Sampler(temperature=0.0)
        self.prefill()
        self.decode()

    def prefill(self) -> None:
        self.decoder.forward(
            self.ids[0, :PROMPT],
            np.arange(PROMPT, dtype=np.int32),
            np.zeros(PROMPT, dtype=np.int32),
            self.tables[:1],
            np.array([PROMPT - 1], dtype=np.int32),
        )

    def decode(self) -> None:
        self._decode(1)

    def decode_several(self) -> None:
        self._decode(SEQUENCES)

    def choose(self) -> None:
        """The next token after the step before."""
        self.decoder.verify([self.sampler], [[]])

    def _decode(self, sequences: int) -> None:
        numbers = np.arange(sequences, dtype=np.int32)
        self.decoder.forward(
            np.ascontiguousarray(self.ids[:sequences, PROMPT]),
            np.full(sequences, PROMPT, dtype=np.int32),
            numbers,
            self.tables[:sequences],
            numbers,
        )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        cli.part_of("instructions.py")
    main()
