"""What is here: bundled models, packed files and downloads, with their state and removal."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from trilobit.bundled import bundled_models
from trilobit.errors import FormatError, RequestError
from trilobit.hub.cache import Entry, Record, fingerprint, folder_bytes, records
from trilobit.hub.names import Repo, near_names, repo_of, resolve

READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A model that takes room here."""

    name: str  # as a user may write it
    state: str  # READY, or what is wrong with it
    path: str | None = None  # the packed file
    size_bytes: int = 0  # of what was packed, stale states included
    download_bytes: int = 0  # in the cache of huggingface_hub
    source: str = ""  # a repository, or an absolute path
    commit: str | None = None
    folder: str | None = None  # in our cache; a bundled model has none

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def shelf() -> list[Held]:
    """All that is here, bundled models first."""
    held = [
        Held(
            name=name,
            state=READY,
            path=str(path),
            size_bytes=path.stat().st_size,
            source="comes with the package",
        )
        for name, path in bundled_models().items()
    ]
    for folder, record in records():
        held.append(_held(folder, record) if record else _nameless(folder))
    return held


def find(model: str) -> Held:
    """What is here of a model, by any name that would run it, or the one that `shelf` shows.

    Raises RequestError when there is nothing to delete.
    """
    everything = shelf()
    by_name = {item.name: item for item in everything if item.folder}
    if model in by_name:
        return by_name[model]
    try:
        found = resolve(model)
    except RequestError:
        raise _not_here(model, everything) from None
    if isinstance(found, Repo):
        by_source = {item.source: item for item in everything}
        item = by_source.get(str(found)) or _download_only(found)
        if item is not None:
            return item
    else:
        if found in bundled_models().values():
            raise RequestError(f"{model}: comes with the package, and goes with it")
        item = next((i for i in everything if i.source == os.path.realpath(found)), None)
        if item is not None:
            return item
        if os.path.exists(found):
            raise RequestError(f"{model}: yours, not made by `trilobit pull`; delete it yourself")
    raise _not_here(model, everything)


def _not_here(model: str, everything: list[Held]) -> RequestError:
    here = [item.name for item in everything if item.folder]
    near = [name for name in near_names(model) if name in here] or here[:3]
    return RequestError(
        f"{model}: not here, so there is nothing to delete; "
        + (f"here are {', '.join(near)}" if near else "nothing was pulled or packed yet")
    )


def remove(held: Held) -> int:
    """Delete the packed files of a model; bytes freed."""
    if held.folder is None:
        return 0
    folder = Path(held.folder)
    entry = Entry.at(folder)
    with entry.locked():
        return entry.remove()


def remove_download(held: Held) -> int:
    """Delete the download of a model; bytes freed."""
    from trilobit.hub.download import delete_download

    repo = repo_of(held.source)
    assert repo is not None
    return delete_download(repo, held.commit)


def _held(folder: Path, record: Record) -> Held:
    entry = Entry.at(folder, record.name, record.title)
    path = entry.path(record.state)
    repo = repo_of(record.name) if record.is_repo else None
    return Held(
        name=repo.alias if repo else record.name,
        state=_state(record, path),
        path=str(path) if path.exists() else None,
        size_bytes=folder_bytes(folder),
        download_bytes=_download_bytes(record),
        source=record.name,
        commit=record.state if repo else None,
        folder=str(folder),
    )


def _state(record: Record, path: Path) -> str:
    if not record.is_repo:
        if not os.path.exists(record.source):
            return "stale: its source is gone"
        try:
            if fingerprint(Path(record.source)) != record.state:
                return "stale: its source has changed"
        except FormatError:
            return "stale: its source cannot be read"
    elif _newer(record):
        return "stale: a newer download is here"
    if not path.exists():
        return "stale: not packed by this version of Trilobit"
    return READY


def _newer(record: Record) -> bool:
    """Whether the revision has become another commit since, as far as this machine knows."""
    repo = repo_of(record.name)
    if repo is None or not record.snapshot:
        return False
    ref = Path(record.snapshot).parent.parent / "refs" / repo.revision
    try:
        return ref.read_text(encoding="ascii").strip() != record.state
    except (OSError, ValueError):
        return False


def _download_bytes(record: Record) -> int:
    sizes = 0
    for name in record.files:
        path = os.path.join(record.snapshot, name)
        sizes += os.path.getsize(path) if os.path.exists(path) else 0
    return sizes


def _nameless(folder: Path) -> Held:
    """A folder whose record is lost or damaged."""
    return Held(
        name=folder.name,
        state="stale: without a record; delete it",
        size_bytes=folder_bytes(folder),
        folder=str(folder),
    )


def _download_only(repo: Repo) -> Held | None:
    """A download that was never packed, because it could not be or not yet."""
    from trilobit.hub.download import downloaded_commit, storage

    commit = downloaded_commit(repo)
    folder = storage(repo) / "snapshots" / (commit or "-")
    if commit is None or not folder.is_dir():
        return None
    return Held(
        name=repo.alias,
        state="not packed",
        download_bytes=folder_bytes(folder),
        source=str(repo),
        commit=commit,
    )
