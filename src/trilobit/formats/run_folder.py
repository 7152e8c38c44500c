"""The folder of a training run, as who looks for a model in it sees it (docs/train.md lists it)."""

from __future__ import annotations

import os
from pathlib import Path

RECIPE = "recipe.json"  # what the run is
FAILED = "failed.txt"  # why it came to nothing, in a line; gone when it is begun anew
_CONFIG = "config.json"  # of a checkpoint
_LONGEST_REASON = 1000


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, and no checkpoint itself."""
    # os.path: unlike Path's methods it has no errors of its own for names that cannot be.
    return os.path.exists(folder / RECIPE) and not os.path.exists(folder / _CONFIG)


def trained_in(folder: Path) -> Path | None:
    """The packed checkpoint that a run has left in its folder; None for any other folder."""
    packed = folder / "packed"
    if is_run(folder) and os.path.exists(packed / _CONFIG):
        return packed
    return None


def why_none_in(folder: Path) -> str | None:
    """Why a run's folder is no checkpoint itself, and what to give instead; None for others."""
    if not is_run(folder):
        return None
    if packed := trained_in(folder):
        return f"a training run; give {packed}"
    if os.path.isdir(folder / "adapter"):
        return (
            "a training run, whose adapter runs beside its model; give the model, and --adapter "
            f"{folder / 'adapter'}"
        )
    if os.path.isdir(folder / "model"):
        return "a training run, whose weights are not ternary, or of a kind that does not run here"
    if reason := _failure(folder):
        return f"a training run that came to nothing: {reason}"
    if any(folder.glob(f"checkpoint-*/{_CONFIG}")):
        return "a training run that has not ended; end it, or give the folder of a checkpoint"
    return "a training run that has not ended, without a checkpoint that is a model; end it"


def _failure(folder: Path) -> str:
    try:
        with (folder / FAILED).open("rb") as file:
            line = file.readline(_LONGEST_REASON).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    return "".join(c if c.isprintable() else "?" for c in line)
