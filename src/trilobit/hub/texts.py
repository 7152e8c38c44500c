"""Texts of the Hub's data sets -> files on this machine, every byte of them checked.

`hf://datasets/OWNER/NAME[@REVISION][/FILES]`, as huggingface_hub spells it; FILES may have `*`, `?`
and `[...]`. What is chosen is a list of plain files: no code of a data set is ever run.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from trilobit.errors import RequestError
from trilobit.hub.download import HubFile, Snapshot, download, storage
from trilobit.hub.files import Needed
from trilobit.hub.listing import listing
from trilobit.hub.names import MAIN, Repo, repo_of
from trilobit.progress import Watch

PREFIX = "hf://datasets/"
_NAME = re.compile(r"([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")
# How `datasets` finds a split by files' names: the word, with no letter or digit beside it.
_TRAIN = re.compile(r"(?<![a-z0-9])train(?:ing)?(?![a-z0-9])", re.IGNORECASE)
_SHOWN = 4  # files that an error lists


def is_of_hub(name: str) -> bool:
    """Whether a file's name is one of a data set of the Hub."""
    return name.startswith(PREFIX)


class Texts(NamedTuple):
    """What a name stands for: files of this machine, by their names, of a commit."""

    commit: str
    files: list[Path]


def text_files(
    name: str, kinds: tuple[str, ...], commit: str | None = None, watch: Watch | None = None
) -> Texts:
    """The files that a name stands for; they are fetched where they are not here.

    kinds: how the names of files that can be read end. Without FILES these are all with `train` in
    their path, or all if there is none. commit: to be taken, whatever the name's revision is now.
    Raises RequestError for a name that is none or stands for no file, DownloadError when the Hub
    cannot be asked or a file is not what it says, OutputError when one cannot be stored.
    """
    repo, pattern = _parsed(name)
    if commit is not None:
        repo = replace(repo, revision=commit)
    commit, there = listing(repo)
    chosen = _chosen(name, pattern, there, kinds)
    snapshot = Snapshot(
        repo=repo,
        commit=commit,
        folder=storage(repo) / "snapshots" / commit,
        needed=Needed(tuple(file.name for file in chosen)),
        files=tuple(chosen),
    )
    download(snapshot, watch, packs=False)
    return Texts(commit, [snapshot.folder / file.name for file in chosen])


def _parsed(name: str) -> tuple[Repo, str | None]:
    match = _NAME.fullmatch(name.removeprefix(PREFIX).rstrip("/"))
    repo = None
    if match:
        # huggingface_hub writes a revision's own slashes so.
        revision = (match[2] or MAIN).replace("%2F", "/")
        repo = repo_of(f"{match[1]}@{revision}")
    if match is None or repo is None or repo.file is not None:
        raise RequestError(
            f"{name[:200]!r}: write {PREFIX}OWNER/NAME, {PREFIX}OWNER/NAME@REVISION, or either "
            "with /FILES behind it"
        )
    return Repo(f"datasets/{match[1]}", repo.revision), match[3]


def _chosen(
    name: str, pattern: str | None, there: dict[str, HubFile], kinds: tuple[str, ...]
) -> list[HubFile]:
    readable = sorted(file for file in there if file.endswith(kinds))
    if pattern is None:
        chosen = [file for file in readable if _TRAIN.search(file)] or readable
    else:
        chosen = [file for file in readable if fnmatchcase(file, pattern)]
    if not chosen:
        shown = ", ".join(readable[:_SHOWN]) + (", ..." if readable[_SHOWN:] else "")
        raise RequestError(
            f"{name[:200]}: stands for no file that can be read; "
            + (f"there are {shown}" if readable else f"there is none ending in {', '.join(kinds)}")
        )
    return [there[file] for file in chosen]
