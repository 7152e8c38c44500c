"""What the Hub said of a commit, kept: a commit never changes, so it is asked about once.

<home>/listings/<name>-<hash>.json      all files of a commit
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from trilobit.errors import FormatError
from trilobit.formats.files import read_json
from trilobit.formats.whole_file import write_whole
from trilobit.hub.download import HubFile, downloaded_commit, listed
from trilobit.hub.faults import Unreachable
from trilobit.hub.home import home
from trilobit.hub.names import Repo

_LOG = logging.getLogger("trilobit")


def listing(repo: Repo) -> tuple[str, dict[str, HubFile]]:
    """The commit that a revision is now, and all its files by their names.

    Where the Hub does not answer, as it was when it was last asked for; which is told on stderr.
    Of a commit that was asked about before, the Hub is not asked.
    Raises DownloadError when it cannot be found or reached, and nothing is known of it.
    """
    last = downloaded_commit(repo)
    known = _read(repo, last) if last else None
    if last and known and last == repo.revision:
        return last, known
    try:
        commit, there = listed(repo)
    except Unreachable:
        if not last or not known:
            raise
        _LOG.warning(f"{repo}: the Hub does not answer; taking what is here, commit {last}")
        return last, known
    _keep(repo, commit, there)
    return commit, there


def _read(repo: Repo, commit: str) -> dict[str, HubFile] | None:
    with suppress(FormatError, OSError, TypeError, KeyError):
        files = [HubFile(**file) for file in read_json(_path(repo, commit))["files"]]
        return {file.name: file for file in files}
    return None


def _keep(repo: Repo, commit: str, there: dict[str, HubFile]) -> None:
    with suppress(OSError):  # without it, the Hub is asked again
        path = _path(repo, commit)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps({"files": [asdict(file) for file in there.values()]})
        write_whole(path, data.encode())


def _path(repo: Repo, commit: str) -> Path:
    name = str(replace(repo, revision=commit))
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    return home() / "listings" / f"{repo.id.rpartition('/')[2]}-{key}.json"
