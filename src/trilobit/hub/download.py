"""A repository of the Hub -> files on this machine, every byte of them checked.

`huggingface_hub` does the transfer into its own cache, by its own settings (HF_HOME, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE, proxies). It compares sizes; the hashes are compared here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilobit.errors import DownloadError, OutputError, RequestError, UnsupportedModel
from trilobit.formats.files import read_json
from trilobit.formats.hf.config import model_config
from trilobit.formats.hf.text import TOKENIZERS
from trilobit.formats.packed.reader import tensor_bytes
from trilobit.formats.whole_file import disk_amount, write_whole
from trilobit.hub.faults import hub_faults, patiently
from trilobit.hub.files import Needed, needed
from trilobit.hub.forwarding import as_tqdm
from trilobit.hub.home import home
from trilobit.hub.names import Repo
from trilobit.progress import Transfer, Watch

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

    from trilobit.model.config import ModelConfig

_LOG = logging.getLogger("trilobit")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIG = "config.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file as the Hub lists it."""

    name: str
    size_bytes: int
    sha256: str | None  # of what Git LFS keeps
    blob: str | None  # git's name of the content, of what git itself keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A commit of a repository: the files needed of it, and where they are or will be."""

    repo: Repo
    commit: str
    folder: Path
    needed: Needed
    files: tuple[HubFile, ...]

    @property
    def source(self) -> Path:
        """What is to be converted."""
        return self.folder / self.needed.source if self.needed.source else self.folder

    @property
    def missing(self) -> list[HubFile]:
        """Files that are not in the snapshot's folder."""
        return [file for file in self.files if not (self.folder / file.name).exists()]

    @property
    def missing_bytes(self) -> int:
        """What must be transferred: another commit may have had the same file."""
        blobs = storage(self.repo) / "blobs"
        return sum(
            file.size_bytes
            for file in self.missing
            if not (blobs / (file.sha256 or file.blob or "-")).exists()
        )


def look_up(repo: Repo) -> Snapshot:
    """Ask the Hub what a model consists of now.

    Raises DownloadError when it cannot be found or reached.
    """
    commit, there = listed(repo)
    wanted = needed(repo, there)
    return Snapshot(
        repo=repo,
        commit=commit,
        folder=storage(repo) / "snapshots" / commit,
        needed=wanted,
        files=tuple(there[name] for name in wanted.files),
    )


def listed(repo: Repo) -> tuple[str, dict[str, HubFile]]:
    """The commit that a revision is now, and all its files by their names.

    Raises DownloadError when it cannot be found or reached.
    """
    from huggingface_hub import HfApi, constants

    kind, repo_id = _kind_and_id(repo)
    with hub_faults(repo):
        info: Any = patiently(
            lambda: HfApi().repo_info(
                repo_id,
                repo_type=kind,
                revision=repo.revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        )
        there = {sibling.rfilename: _hub_file(sibling) for sibling in info.siblings or ()}
        if info.sha is None or not _COMMIT.fullmatch(info.sha):
            raise ValueError(f"the commit {info.sha!r}")
    return str(info.sha), there


def downloaded(repo: Repo) -> Snapshot | None:
    """The newest complete download of a model, found without the network."""
    commit = downloaded_commit(repo)
    if commit is None:
        return None
    folder = storage(repo) / "snapshots" / commit
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        wanted = needed(repo, names)
    except (RequestError, UnsupportedModel):
        return None
    has_text = wanted.source or any(set(names) <= set(wanted.files) for names in TOKENIZERS)
    if not has_text:  # another program may have wanted the weights only
        return None
    files = tuple(_from_cache(folder, name) for name in wanted.files)
    return Snapshot(repo=repo, commit=commit, folder=folder, needed=wanted, files=files)


def downloaded_commit(repo: Repo) -> str | None:
    """The commit that a revision was when it was last asked for, by whatever program."""
    if _COMMIT.fullmatch(repo.revision):
        return repo.revision
    with suppress(OSError, ValueError):
        commit = (storage(repo) / "refs" / repo.revision).read_text(encoding="ascii").strip()
        return commit if _COMMIT.fullmatch(commit) else None
    return None


def download(snapshot: Snapshot, watch: Watch | None = None, *, packs: bool = True) -> None:
    """Fetch what is missing and check every file.

    The config comes first: the weights of a model that does not run here are not worth the wait,
    nor those of one whose packed file, if it gets one (packs), finds no room.
    Raises UnsupportedModel or FormatError for a config that is not for us, DownloadError when a
    file cannot be fetched or is not what the Hub says (it is then deleted), OutputError when it
    cannot be stored.
    """
    from huggingface_hub import hf_hub_download

    remove_leftovers(snapshot.repo)
    wanted_bytes = snapshot.missing_bytes
    _check_space(snapshot.repo, wanted_bytes)
    what = f"Downloading {snapshot.repo}"
    transfer = Transfer(watch, what, wanted_bytes)
    kind, repo_id = _kind_and_id(snapshot.repo)
    with hub_faults(snapshot.repo):
        _remember(snapshot)
        for file in snapshot.missing:
            patiently(
                lambda name=file.name: hf_hub_download(  # type: ignore[misc]
                    repo_id,
                    name,
                    repo_type=kind,
                    revision=snapshot.commit,
                    tqdm_class=as_tqdm(transfer.advance),
                ),
                asked_again=True,
            )
            if file.name == _CONFIG:
                config = _checked_config(snapshot, file)
                if packs:
                    _check_packed_space(snapshot, config)
    verify(snapshot, watch)


def verify(snapshot: Snapshot, watch: Watch | None = None) -> None:
    """Compare every file with its hash; delete one that is wrong, and raise DownloadError."""
    size_bytes = sum(file.size_bytes for file in snapshot.files)
    transfer = Transfer(watch, f"Checking {snapshot.repo}", size_bytes)
    for file in snapshot.files:
        _verify(snapshot, file, transfer.advance)


def storage(repo: Repo) -> Path:
    """The folder of a repository in the cache of huggingface_hub."""
    from huggingface_hub import constants

    kind, repo_id = _kind_and_id(repo)
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo_id.replace('/', '--')}"


def remove_leftovers(repo: Repo) -> None:
    """Delete the partial files of downloads that were killed; those under way are locked."""
    from filelock import FileLock, Timeout

    locks = storage(repo).parent / ".locks" / storage(repo).name
    for part in (storage(repo) / "blobs").glob("*.incomplete"):
        lock = FileLock(locks / f"{part.name.split('.')[0]}.lock")
        with suppress(Timeout, OSError), lock.acquire(timeout=0):
            part.unlink()


def delete_download(repo: Repo, commit: str | None) -> int:
    """Delete a commit of a model from the cache of huggingface_hub; bytes freed."""
    from huggingface_hub import constants, scan_cache_dir

    remove_leftovers(repo)
    if commit is None or not (storage(repo) / "snapshots" / commit).is_dir():
        return 0
    with hub_faults(repo):
        plan = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(commit)
        plan.execute()
    return plan.expected_freed_size


def _kind_and_id(repo: Repo) -> tuple[str, str]:
    """As huggingface_hub takes them: a data set's id begins with `datasets/` here."""
    kind, _, name = repo.id.partition("/")
    return ("dataset", name) if kind == "datasets" and "/" in name else ("model", repo.id)


def _hub_file(sibling: RepoSibling) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    blob = None if sibling.lfs else sibling.blob_id
    size = sibling.size
    # Without a hash nothing could be checked; without a size, not whether it fits.
    known = _SHA256.fullmatch(sha256) if sha256 is not None else _COMMIT.fullmatch(blob or "")
    if not known or not isinstance(size, int) or size < 0:
        raise ValueError(f"no size and hash of {sibling.rfilename!r}")
    return HubFile(name=sibling.rfilename, size_bytes=size, sha256=sha256, blob=blob)


def _from_cache(folder: Path, name: str) -> HubFile:
    path = folder / name
    # A snapshot's files are links to blobs, and a blob's name is its hash: of the content where
    # Git LFS keeps it, git's own where git does.
    blob = path.readlink().name if path.is_symlink() else ""
    return HubFile(
        name=name,
        size_bytes=path.stat().st_size,
        sha256=blob if _SHA256.fullmatch(blob) else None,
        blob=blob if _COMMIT.fullmatch(blob) else None,
    )


def _checked_config(snapshot: Snapshot, file: HubFile) -> ModelConfig:
    _verify(snapshot, file, lambda count: None)
    return model_config(read_json(snapshot.folder / file.name), f"{snapshot.repo}: {file.name}")


def _verify(snapshot: Snapshot, file: HubFile, moved: Callable[[int], None]) -> None:
    path = snapshot.folder / file.name
    expected = file.sha256 or file.blob
    if expected is None:
        return
    digest = hashlib.sha256() if file.sha256 else _git_blob(path)
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            moved(len(chunk))
    if digest.hexdigest() != expected:
        _delete_cached(path)
        raise DownloadError(
            f"{snapshot.repo}: {file.name} is damaged ({digest.name} {digest.hexdigest()}, "
            f"the Hub says {expected}); it was deleted: pull again"
        )


def _git_blob(path: Path) -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)


def _check_space(repo: Repo, wanted_bytes: int) -> None:
    place = _standing(storage(repo))
    free_bytes = shutil.disk_usage(place).free
    if wanted_bytes > free_bytes:
        raise OutputError(
            f"{repo}: needs {disk_amount(wanted_bytes)}, and the disk of {place} has "
            f"{disk_amount(free_bytes)} free; free space, or set HF_HOME to another disk"
        )


def _check_packed_space(snapshot: Snapshot, config: ModelConfig) -> None:
    place = _standing(home())
    wanted_bytes = tensor_bytes(config)
    if place.stat().st_dev == _standing(storage(snapshot.repo)).stat().st_dev:
        wanted_bytes += snapshot.missing_bytes
    free_bytes = shutil.disk_usage(place).free
    if wanted_bytes > free_bytes:
        raise OutputError(
            f"{snapshot.repo}: needs {disk_amount(wanted_bytes)} until it is packed, and the disk "
            f"of {place} has {disk_amount(free_bytes)} free; free space, or set TRILOBIT_HOME to "
            "another disk"
        )


def _standing(place: Path) -> Path:
    """The nearest folder of a path that is there already."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _remember(snapshot: Snapshot) -> None:
    """Note which commit the revision is, as huggingface_hub does when it resolves one itself."""
    if snapshot.repo.revision == snapshot.commit:
        return
    ref = storage(snapshot.repo) / "refs" / snapshot.repo.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    write_whole(ref, snapshot.commit.encode("ascii"))


def _delete_cached(path: Path) -> None:
    """Delete a file of a snapshot with all that it links to in the cache."""
    chain = [path]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / chain[-1].readlink())
    for link in chain:
        with suppress(OSError):
            link.unlink()
    _LOG.info(f"deleted {path}")
