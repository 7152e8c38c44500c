"""The tensor types of GGUF: their numbers, names and sizes.

Ids 0 to 41 are those of ggml (`ggml.h`). Forks took ids of their own, some of them twice: 36 to 39
are microsoft/BitNet's I2_S, I8_S, TL1 and TL2 (39 is MXFP4 in ggml), 134 and 135 ik_llama.cpp's. An
id that means two sizes is settled by the offsets of the file (see `container`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GGMLType:
    """`block` weights take `block_bytes` bytes; `row_bytes` more stand before every row."""

    name: str
    block: int
    block_bytes: int
    row_bytes: int = 0
    tensor_bytes: int = 0  # once, behind the last block

    def size_bytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of a tensor of row-major `shape`; None when rows are no whole blocks."""
        rows, columns = math.prod(shape[:-1]), shape[-1]
        if self.tensor_bytes:  # I2_S packs a tensor as one run of weights
            columns, rows = rows * columns, 1
        if columns % self.block:
            return None
        return rows * (self.row_bytes + columns // self.block * self.block_bytes) + (
            self.tensor_bytes
        )


F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16 = 0, 1, 2, 8, 12, 14, 30
TQ1_0, TQ2_0, I2_S, TL1, TL2, Q2_0, IQ1_BN, IQ2_BN = 34, 35, 36, 38, 39, 42, 134, 135

# Groups of Q2_0: 64 in ggml, 128 in the first files of Ternary-Bonsai, under the same id.
Q2_0_GROUPS = (64, 128)

TYPES: dict[int, GGMLType] = {
    F32: GGMLType("F32", 1, 4),
    F16: GGMLType("F16", 1, 2),
    Q4_0: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    Q8_0: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 40),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    Q4_K: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    Q6_K: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    BF16: GGMLType("BF16", 1, 2),
    TQ1_0: GGMLType("TQ1_0", 256, 54),
    TQ2_0: GGMLType("TQ2_0", 256, 66),
    I2_S: GGMLType("I2_S", 4, 1, tensor_bytes=32),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
    Q2_0: GGMLType("Q2_0", 64, 18),
    IQ1_BN: GGMLType("IQ1_BN", 64, 13, row_bytes=2),
    IQ2_BN: GGMLType("IQ2_BN", 64, 16, row_bytes=4),
}

Q2_0_OF_128 = GGMLType("Q2_0", 128, 34)

# The types whose codes Trilobit runs, and those that it takes for embeddings, heads and norms.
TERNARY = (I2_S, TQ1_0, TQ2_0, IQ1_BN, IQ2_BN, Q2_0)
FLOATS = (F32, F16, BF16, Q8_0, Q6_K, Q4_0, Q4_K)

_TABLES = (
    "is laid out for one processor's tables; take the I2_S file of this model, or its "
    "Hugging Face checkpoint"
)
# Types whose sizes nobody else's files tell.
REFUSED: dict[int, str] = {
    37: "is I8_S, an activation; no weights come so",
    TL1: f"is TL1, which {_TABLES}",
    TL2: f"is TL2 (or MXFP4, which is not ternary), which {_TABLES}",
    142: "is PQ2_0 (rotated weights of Bonsai 2, which do not run here) or IQ2_TN, by whose file "
    "it is; of the latter take the TQ2_0 form",
    143: "is PTQ1_0 (rotated weights of Bonsai 2, which do not run here) or IQ1_TN, by whose file "
    "it is; of the latter take the TQ1_0 form",
    335: "is IQ2_BN_R4, repacked for one program; take the IQ2_BN file of this model",
}
