"""The tasks of the papers' tables, with the numbers that stand there.

A paper's number was measured on its own model, by its own version of the tasks: it stands beside
ours to tell the order of size, not to be hit to the digit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suite:
    """source: the paper and its table. published: model -> its percentages, in the tasks' order."""

    source: str
    tasks: tuple[str, ...]
    published: dict[str, tuple[float, ...]]


SUITES = {
    "bitnet-b1.58": Suite(
        "The Era of 1-bit LLMs (arXiv 2402.17764), table 2; zero-shot",
        (
            "arc_easy",
            "arc_challenge",
            "hellaswag",
            "boolq",
            "openbookqa",
            "piqa",
            "winogrande",
        ),
        {
            "BitNet b1.58 700M": (51.8, 21.4, 35.1, 58.2, 20.0, 68.1, 55.2),
            "BitNet b1.58 1.3B": (54.9, 24.2, 37.7, 56.7, 19.6, 68.8, 55.8),
            "BitNet b1.58 3B": (61.4, 28.3, 42.9, 61.5, 26.6, 71.5, 59.3),
            "BitNet b1.58 3.9B": (64.2, 28.7, 44.2, 63.5, 24.2, 73.2, 60.5),
        },
    ),
    "bitnet-2b4t": Suite(
        "BitNet b1.58 2B4T Technical Report (arXiv 2504.12285), table 1",
        (
            "arc_challenge",
            "arc_easy",
            "openbookqa",
            "boolq",
            "hellaswag",
            "piqa",
            "winogrande",
        ),
        {"BitNet b1.58 2B4T": (49.91, 74.79, 41.60, 80.18, 68.44, 77.09, 71.90)},
    ),
}
