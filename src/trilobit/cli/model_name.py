"""The name of a model on the command line, and what a shell may complete it to."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilobit.errors import TrilobitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_FILES = (".trilobit", ".gguf")


class ModelName(click.ParamType):  # type: ignore[type-arg]
    """A file, a folder or a name. here: only what can be deleted is completed."""

    name = "model"

    def __init__(self, *, here: bool = False) -> None:
        self._here = here

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is; an empty one is most often an empty variable of a script."""
        if not value:
            raise click.UsageError("MODEL is empty; give a file, a folder or a name", ctx)
        return value

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names and models' files that begin so; where there are none, the shell looks itself."""
        from click.shell_completion import CompletionItem

        names = _here() if self._here else [*_known(), *_here(), *_files(incomplete)]
        found = [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
        if found or self._here:
            return [CompletionItem(name) for name in found]
        return [CompletionItem(incomplete, type="file")]


def known_models() -> list[str]:
    """Names of models: those that come with the package, published ones, and what is here."""
    return list(dict.fromkeys([*_known(), *_here()]))


def _known() -> list[str]:
    from trilobit.bundled import bundled_models
    from trilobit.hub.names import ALIASES

    return [*bundled_models(), *ALIASES]


def _here() -> list[str]:
    from trilobit.hub.shelf import shelf

    try:
        return [item.name for item in shelf() if item.folder]
    except (OSError, TrilobitError):  # this is not the moment to say so
        return []


def _files(incomplete: str) -> list[str]:
    return [
        path
        for path in glob.glob(f"{glob.escape(incomplete)}*")
        if path.isprintable()  # what is not cannot be told to a shell
        and (path.endswith(_FILES) or _is_model(Path(path)))
    ]


def _is_model(folder: Path) -> bool:
    from trilobit.formats.run_folder import trained_in

    return os.path.exists(folder / "config.json") or trained_in(folder) is not None
