"""The models that come with the package, by name; their cards and recipes are in `models/`."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "trilobit-stories-5m"
CHAT = "trilobit-chat-5m"  # the same, taught to talk
ARABIC = "trilobit-arabic-7m"  # goes on with Arabic prose

# What the text of a model begins with where nobody gave a beginning.
BEGINNINGS = {DEFAULT: "Once upon a time", ARABIC: "وفي صباح اليوم التالي"}

_FOLDER = Path(__file__).parent


def bundled_models() -> dict[str, Path]:
    """Name -> packed file of every model in the package."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.trilobit"))}
