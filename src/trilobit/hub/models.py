"""A model by any name -> its packed file, made once and kept.

What was prepared is opened without a look at the network. `pull` asks the Hub for newer weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trilobit.errors import FormatError
from trilobit.hub.names import Repo, resolve
from trilobit.progress import Watch

if TYPE_CHECKING:
    from trilobit.formats.packed.reader import PackedModel
    from trilobit.hub.cache import Entry, Record
    from trilobit.hub.download import Snapshot

_LOG = logging.getLogger("trilobit")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A model that is ready to run."""

    name: str  # how to run it
    path: Path  # its packed file
    downloaded_bytes: int
    is_new: bool  # it was packed now


def model_file(model: str | os.PathLike[str], watch: Watch | None = None) -> Path:
    """The packed file of a model: a path, or a name of any kind (see `names.resolve`).

    A model of the Hub is downloaded and packed the first time; so is a checkpoint on this
    machine, and again when its files change. A path that is neither is returned as it is.
    """
    found = resolve(model)
    if isinstance(found, Repo):
        entry = _entry(found)
        return _ready(entry) or _prepare(found, entry, watch)
    return _pack(found, watch).path if _is_source(found) else found


def open_packed(
    model: str | os.PathLike[str],
    read: Callable[[PackedModel], Result],
    watch: Watch | None = None,
) -> tuple[PackedModel, Result]:
    """The packed file of a model (see `model_file`), open, and what `read` makes of it.

    One of the cache that proves damaged, to `read` or before, is packed again, once, and this is
    told on stderr.
    """
    from trilobit.hub.repair import Seen, damaged_again, pack_again

    seen = Seen(model_file(model, watch))
    try:
        return _opened(seen.path, read)
    except FormatError as error:
        if not seen.is_cached:
            raise
        fault = error.with_traceback(None)  # whose frames would keep the file mapped
    pack_again(seen, fault, watch)
    path = model_file(model, watch)
    try:
        return _opened(path, read)
    except FormatError as error:
        raise damaged_again(path, error) from None


def _opened(path: Path, read: Callable[[PackedModel], Result]) -> tuple[PackedModel, Result]:
    from trilobit.formats.packed.reader import PackedModel

    packed = PackedModel(path)
    return packed, read(packed)


def known_file(model: str | os.PathLike[str]) -> Path | None:
    """The packed file of a model if that is here, or the path that was named. Prepares nothing."""
    found = resolve(model)
    return _ready(_entry(found)) if isinstance(found, Repo) else found


def source_path(model: str | os.PathLike[str], watch: Watch | None = None) -> Path:
    """What to convert of a model: the path that was named, or the download of a name."""
    found = resolve(model)
    if not isinstance(found, Repo):
        return found
    entry = _entry(found)
    with entry.locked():
        record = entry.record()
        if record is not None and record.has_download:
            return Path(record.source)
        return _fetch(found, record, watch, packs=False).source


def pull(model: str | os.PathLike[str], watch: Watch | None = None) -> Pulled:
    """Have the newest state of a model here, ready to run.

    Raises DownloadError when it cannot be fetched, FormatError or UnsupportedModel when it
    cannot be packed, OutputError when there is no room for it.
    """
    found = resolve(model)
    if isinstance(found, Repo):
        return _pull(found, watch)
    if _is_source(found):
        return _pack(found, watch, check=True)
    from trilobit.formats.packed.checksums import damaged_parts
    from trilobit.formats.packed.reader import PackedModel

    wrong = damaged_parts(PackedModel(found).file)  # or it says what it is instead
    if wrong:
        raise FormatError(f"{found}: {wrong[0]} has changed since it was packed; convert it again")
    return Pulled(name=str(model), path=found, downloaded_bytes=0, is_new=False)


def _entry(repo: Repo) -> Entry:
    from trilobit.hub.cache import Entry

    return Entry(str(repo), repo.title)


def _ready(entry: Entry) -> Path | None:
    record = entry.record()
    if record is None:
        return None
    path = entry.path(record.state)
    return path if path.exists() else None


def _prepare(repo: Repo, entry: Entry, watch: Watch | None) -> Path:
    """Pack what is here of a repository; download it if that is not enough."""
    with entry.locked():
        ready = _ready(entry)  # another process may have made it meanwhile
        if ready is not None:
            return ready
        record = entry.record()
        if record is not None and record.has_download:
            return entry.make(record, watch)  # the packed format has changed, or packing was killed
        return _make(entry, _fetch(repo, record, watch), watch)


def _fetch(
    repo: Repo, record: Record | None, watch: Watch | None, *, packs: bool = True
) -> Snapshot:
    """Have a download here: of the commit of the record, the Hub's newest, or what there is."""
    from trilobit.hub.download import download, downloaded, look_up, verify
    from trilobit.hub.faults import Unreachable

    wanted = replace(repo, revision=record.state) if record else repo
    try:
        snapshot = look_up(wanted)
    except Unreachable:
        here = downloaded(wanted)
        if here is None:
            raise
        verify(here, watch)
        return here
    download(snapshot, watch, packs=packs)
    return snapshot


def _pull(repo: Repo, watch: Watch | None) -> Pulled:
    from trilobit.hub.download import download, look_up

    entry = _entry(repo)
    with entry.locked():
        snapshot = look_up(repo)
        path = entry.path(snapshot.commit)
        if path.exists() and _ready(entry) == path and _is_whole(path, repo.alias):
            return Pulled(name=repo.alias, path=path, downloaded_bytes=0, is_new=False)
        size_bytes = snapshot.missing_bytes
        download(snapshot, watch)
        path = _make(entry, snapshot, watch)
    return Pulled(name=repo.alias, path=path, downloaded_bytes=size_bytes, is_new=True)


def _make(entry: Entry, snapshot: Snapshot, watch: Watch | None) -> Path:
    from trilobit.hub.cache import Record

    return entry.make(
        Record(
            name=entry.name,
            title=entry.title,
            is_repo=True,
            state=snapshot.commit,
            source=str(snapshot.source),
            files=snapshot.needed.files,
            snapshot=str(snapshot.folder),
        ),
        watch,
    )


def _is_source(path: Path) -> bool:
    """Whether a path is something to be packed first."""
    if os.path.isdir(path):
        return os.path.exists(path / "config.json")
    from trilobit.formats.gguf import is_gguf

    return os.path.exists(path) and is_gguf(path)


def _is_whole(path: Path, name: str) -> bool:
    """Whether a packed file opens and its checksums are right; one that is not is deleted."""
    from trilobit.formats.packed.checksums import damaged_parts
    from trilobit.formats.packed.reader import PackedModel

    try:
        wrong = damaged_parts(PackedModel(path).file)
        fault = f"{wrong[0]} has changed" if wrong else ""
    except FormatError as error:
        fault = str(error)
    if not fault:
        return True
    _LOG.warning(f"{name}: its packed file is damaged ({fault:.200}); packing it again")
    path.unlink(missing_ok=True)
    return False


def _pack(path: Path, watch: Watch | None, *, check: bool = False) -> Pulled:
    from trilobit.hub.cache import Entry, Record, fingerprint

    name = os.path.realpath(path)
    entry = Entry(name, Path(name).stem if os.path.isfile(name) else Path(name).name)
    state = fingerprint(Path(name))
    made = entry.path(state)
    if made.exists() and entry.record() is not None and (not check or _is_whole(made, str(path))):
        return Pulled(name=str(path), path=made, downloaded_bytes=0, is_new=False)
    record = Record(name=name, title=entry.title, is_repo=False, state=state, source=name)
    with entry.locked():
        made = entry.make(record, watch)
    return Pulled(name=str(path), path=made, downloaded_bytes=0, is_new=True)
