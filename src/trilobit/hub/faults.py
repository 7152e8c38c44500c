"""What can go wrong between here and the Hub, told in one line each."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from trilobit.errors import DownloadError, OutputError, TrilobitError
from trilobit.formats.whole_file import NO_ROOM, write_remedy
from trilobit.hub.names import ALIASES, Repo, near_names

_LOG = logging.getLogger("trilobit")

Result = TypeVar("Result")

# Before another try. A busy server is back in seconds, or not soon.
_WAITS_S = (0.5, 1.0, 2.0)
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that another try may find gone
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class Unreachable(DownloadError):
    """No answer from the Hub: what is here already may do."""


def patiently(action: Callable[[], Result], *, asked_again: bool = False) -> Result:
    """Do it, and again while what failed may pass.

    asked_again: the action itself repeats requests that get no answer.
    """
    for wait_s in _WAITS_S:
        try:
            return action()
        except Exception as error:
            if not _may_pass(_root(error), asked_again=asked_again):
                raise
            _LOG.info("the Hub is busy; trying again")
            time.sleep(wait_s)
    return action()


@contextmanager
def hub_faults(repo: Repo) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors, and keep its log out of the terminal."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(max(level, logging.ERROR))
    try:
        yield
    except TrilobitError:
        raise
    except Exception as error:
        told = _told(repo, _root(error))
        if told is None:
            raise
        raise told from None
    finally:
        log.setLevel(level)


def _root(error: Exception) -> Exception:
    """The answer behind `not in the cache either`."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause = error.__cause__
    return (
        cause
        if isinstance(error, LocalEntryNotFoundError) and isinstance(cause, Exception)
        else error
    )


def _may_pass(error: Exception, *, asked_again: bool) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    if _is_transport(error):
        return not asked_again
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def _is_transport(error: Exception) -> bool:
    # Of the library that huggingface_hub uses at the moment (httpx2), which is no business of ours.
    return type(error).__module__.split(".")[0].startswith("httpx")


def _told(repo: Repo, error: Exception) -> TrilobitError | None:
    from huggingface_hub import constants, errors

    where = constants.ENDPOINT.removeprefix("https://").removeprefix("http://")
    page = f"{constants.ENDPOINT}/{repo.id}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return Unreachable(
            f"{repo}: not here, and HF_HUB_OFFLINE is set; unset it and pull the model once"
        )
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo}: gated; accept its licence at {page}, then set HF_TOKEN to a token of yours"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(f"{repo}: {repo.id} has no revision {repo.revision}; see {page}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return _not_found(repo, where)
    if isinstance(error, errors.EntryNotFoundError):
        return DownloadError(f"{repo}: a file went away while it was fetched; pull again")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo, where, page, error.response.status_code)
    if _is_transport(error):
        return Unreachable(
            f"{repo}: no answer from {where} ({type(error).__name__}: {error}); check the network, "
            "proxies and HF_ENDPOINT, then try again"
        )
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, *_NO_PLACE):
        where = f" in {error.filename}" if error.filename else ""
        remedy = write_remedy(error, "set HF_HOME to another place")
        return OutputError(f"{repo}: cannot be stored{where} ({error.strerror}); {remedy}")
    if isinstance(error, OSError):
        text = error.strerror or str(error).split(". ")[0]
        return DownloadError(f"{repo}: cannot be fetched ({text}); try again")
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return DownloadError(
            f"{repo}: {where} does not answer as a Hub does ({error}); check the network and "
            "HF_ENDPOINT"
        )
    return None


def _not_found(repo: Repo, where: str) -> DownloadError:
    near = [name for name in near_names(repo.id) if ALIASES.get(name) != str(repo)]
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    what = "data set" if repo.id.startswith("datasets/") else "model"
    return DownloadError(
        f"{repo}: neither a file here nor a {what} of {where} that is open to you{meant or ';'} "
        "check the name, or set HF_TOKEN if it is private"
    )


def _refused(repo: Repo, where: str, page: str, status: int) -> DownloadError:
    if status == 401:
        return DownloadError(f"{repo}: {where} does not take your HF_TOKEN (401); renew it")
    if status == 403:
        return DownloadError(
            f"{repo}: forbidden (403); accept its licence at {page}, and set HF_TOKEN to a token "
            "that may read it"
        )
    if status in _PASSING:
        return Unreachable(f"{repo}: {where} answers {status} again and again; try later")
    return DownloadError(f"{repo}: {where} answers {status}; see {page}")
