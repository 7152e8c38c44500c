"""The models that come with the package, by name; their cards and recipes are in `models/`."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import RequestError

DEFAULT = "trilobit-stories-5m"

_FOLDER = Path(__file__).parent


def bundled_models() -> dict[str, Path]:
    """Name -> packed file of every model in the package."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.trilobit"))}


def model_path(model: str | os.PathLike[str]) -> Path:
    """A file, or that of a bundled model; a file of that name comes first.

    Raises RequestError for a bare name that is neither; whether another path exists is left to
    whoever opens it.
    """
    path = Path(model)
    if not os.path.exists(path):  # unlike Path.exists, no error for an impossible name
        bundled = bundled_models()
        if str(model) in bundled:
            return bundled[str(model)]
        if path.suffix == "" and len(path.parts) == 1:
            raise RequestError(
                f"{model}: neither a file nor a bundled model; bundled: "
                f"{', '.join(bundled) or 'none in this installation'}"
            )
    return path
