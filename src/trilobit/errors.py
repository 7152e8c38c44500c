"""Every error a user can meet, in one tree.

    TrilobitError
    ├── FormatError          a file is damaged, foreign, or not what its header claims
    ├── UnsupportedModel     a sound file of an architecture or variant we do not run
    ├── RequestError         a prompt, parameter or option that cannot be served
    │   └── ContextOverflow  more tokens than the model's context holds
    ├── RecipeError          a training recipe that cannot be followed
    ├── EngineError          what runs a model was killed
    ├── DownloadError        a model that cannot be found, or not fetched whole
    └── OutputError          a result could not be written (disk full, no permission)

A message is one line: what, where, the remedy. The command line prints it and exits with 2.
"""

_LONGEST = 1000  # characters of a message; a path alone may have some hundreds
_END = 300  # of them, where the remedy is


class TrilobitError(Exception):
    """Base of all errors that are the input's or the machine's fault, not ours.

    A message that repeats more of the input than anybody reads keeps its beginning and its end.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*map(_shortened, args))


class FormatError(TrilobitError):
    """A file is damaged, foreign, or not what its header claims."""


class UnsupportedModel(TrilobitError):
    """A sound file of an architecture or variant that Trilobit does not run."""


class RequestError(TrilobitError, ValueError):
    """A prompt, parameter or option that cannot be served."""


class ContextOverflow(RequestError):
    """More tokens than the model's context holds."""


class RecipeError(TrilobitError):
    """A training recipe that cannot be followed."""


class EngineError(TrilobitError):
    """What runs a model was killed, by nothing that a request can ask for."""


class DownloadError(TrilobitError):
    """A model that cannot be found, or not fetched whole; nothing broken was left behind."""


class OutputError(TrilobitError, OSError):
    """A result could not be written; nothing half-written was left behind."""


def _shortened(part: object) -> object:
    if not isinstance(part, str) or len(part) <= _LONGEST:
        return part
    return f"{part[: _LONGEST - _END - 3]} … {part[-_END:]}"
