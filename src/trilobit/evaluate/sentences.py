"""STS-B: do vectors of sentences lie as near each other as people find their meanings?

Cer et al., SemEval 2017, task 1: pairs of sentences with a likeness from 0 to 5 by people. The
score is Spearman's rank correlation of that with the cosine of the two vectors.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trilobit.embedder import Embedder
from trilobit.errors import FormatError, RequestError
from trilobit.evaluate.local import lines_of
from trilobit.evaluate.score import TaskScore
from trilobit.vectors import PRECISIONS, pack_vectors, unpack_vectors

STSB = "stsb"
_FILE = "stsb_sts-test.csv"  # columns by tabs: genre, file, year, number, score, both sentences
_SCORE, _FIRST, _SECOND = 4, 5, 6


def stsb(embedder: Embedder, folder: Path, *, limit: int | None = None) -> list[TaskScore]:
    """Spearman's correlation for vectors of each precision, float32 and packed.

    folder: has `stsb_sts-test.csv`, or that with `.xz`. limit: pairs; None takes all. The sentences
    are embedded as they are, without an instruction. In fewer bits both vectors of a pair are.

    Raises RequestError for a folder without it, FormatError for a damaged file.
    """
    pairs = _pairs(folder)[:limit]
    likeness = np.array([score for score, _, _ in pairs])
    first_NK = embedder.encode([one for _, one, _ in pairs])
    second_NK = embedder.encode([other for _, _, other in pairs])
    scores = []
    for precision in PRECISIONS:
        both = [
            unpack_vectors(pack_vectors(vectors, precision), precision, vectors.shape[1])
            for vectors in (first_NK, second_NK)
        ]
        value = spearman(np.einsum("nk,nk->n", *both), likeness)
        # Fisher's transformation; of ranks by Bonett and Wright (2000).
        several = len(pairs) - 3
        error = (
            math.sqrt((1 + value * value / 2) / several) * (1 - value * value)
            if several > 0
            else None
        )
        scores.append(
            TaskScore(
                task=STSB,
                metric=f"spearman ({precision})",
                value=value,
                standard_error=error,
                questions=len(pairs),
                shots=0,
            )
        )
    return scores


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's correlation of ranks, where equals share their mean rank; 0 for constants."""
    ranks = [_ranks(np.asarray(values)) for values in (one, other)]
    apart = [values - values.mean() for values in ranks]
    spread = math.sqrt(float((apart[0] ** 2).sum() * (apart[1] ** 2).sum()))
    return float((apart[0] * apart[1]).sum()) / spread if spread else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = last - (counts - 1) / 2
    return means[places]


def _pairs(folder: Path) -> list[tuple[float, str, str]]:
    path = next(
        (folder / name for name in (_FILE, f"{_FILE}.xz") if (folder / name).exists()), None
    )
    if path is None:
        raise RequestError(f"{folder}: no {_FILE} (or .xz) for {STSB}; give its folder")
    found = []
    for number, line in enumerate(lines_of(path), 1):
        fields = line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t")
        try:
            score = float(fields[_SCORE])
            if not math.isfinite(score):
                raise ValueError
            found.append((score, fields[_FIRST], fields[_SECOND]))
        except (ValueError, IndexError):
            raise FormatError(f"{path}: line {number} is no pair of {STSB}; mend it") from None
    if not found:
        raise FormatError(f"{path}: holds no pair; fetch it again")
    return found
