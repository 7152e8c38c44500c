"""A path on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import click


class FilePath(click.Path):
    """A path that says something: an empty one is most often an empty variable of a script."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        """The path; a usage error for an empty one."""
        if not os.fspath(value):
            self.fail("it is empty; name a file or a folder", param, ctx)
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)
        return path
