"""Recipes of the papers' sizes, to be run as they are or begun with: a file for each."""

from __future__ import annotations

from pathlib import Path

# By size.
PRESETS = {
    name: Path(__file__).with_name(f"{name}.toml")
    for name in ("125m", "350m", "700m", "1.3b", "2b4t", "3b", "3.9b")
}
