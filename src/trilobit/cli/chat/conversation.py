"""A conversation: a system message, exchanges, and the file they are kept in.

The file is a JSON list of messages, `{"role": ..., "content": ...}`, as chat APIs take them.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from trilobit.errors import FormatError, OutputError, RequestError
from trilobit.formats import json_text
from trilobit.formats.files import open_file
from trilobit.formats.whole_file import write_whole
from trilobit.text.utf8 import utf8

Message = dict[str, str]

# A file far larger than any conversation is something else, and would fill the memory.
_LONGEST_FILE = 64_000_000


class Exchange(NamedTuple):
    """What the user said and what the model answered."""

    said: str
    answered: str


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Holds whole exchanges only, so it can always go on.

    left_out: how many of the oldest exchanges are no longer sent to the model. file: where this
    conversation was saved last, or loaded from.
    """

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    left_out: int = 0
    file: Path | None = None

    def messages(self, start: int = 0, said: str | None = None) -> list[Message]:
        """The system message, the exchanges from `start` on, and what is said next."""
        messages = [] if self.system is None else [_message("system", self.system)]
        for exchange in self.exchanges[start:]:
            messages.append(_message("user", exchange.said))
            messages.append(_message("assistant", exchange.answered))
        return messages if said is None else [*messages, _message("user", said)]

    def first_sent(self, said: str, fits: Callable[[list[Message]], bool]) -> int:
        """The first exchange to send with a new message: the oldest ones go until all fits.

        The number of exchanges where even the message alone does not fit.
        """
        start, end = self.left_out, len(self.exchanges)
        if start == end or fits(self.messages(start, said)):
            return start
        return bisect_left(
            range(end), True, lo=start + 1, key=lambda i: fits(self.messages(i, said))
        )

    def reset(self) -> None:
        """Begin anew under the same system message: another conversation, with no file yet."""
        self.exchanges.clear()
        self.left_out, self.file = 0, None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the messages, whole or not at all; replaces no file but this conversation's own.

        Raises OutputError.
        """
        try:
            target = _place(path)
            if target.is_dir():
                raise OutputError(f"{path}: is a directory; give a file name")
            if target != self.file and target.exists():
                raise OutputError(f"{path}: exists already; choose another name")
            text = json.dumps(self.messages(), ensure_ascii=False, indent=2) + "\n"
            write_whole(target, text.encode())
        except OutputError:
            raise
        except ValueError:  # a NUL in the name
            raise OutputError(f"{path}: not a possible file name; choose another") from None
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another place"
            ) from None
        self.file = target
        return target


def load(path: str | os.PathLike[str]) -> Conversation:
    """The conversation in a file; raises FormatError when it is not one."""
    try:
        source = _place(path)
        file, size = open_file(source)
        with file:
            if size > _LONGEST_FILE:
                raise FormatError(f"{path}: {size} bytes are no saved chat; give another file")
            data = file.read()
    except ValueError:  # a NUL in the name
        raise FormatError(f"{path}: not a possible file name; check the name") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        messages = json_text.parse(data)
    except json_text.JSONFault as fault:
        raise FormatError(f"{path}: {fault}; give a file that /save wrote") from None
    return _from_messages(messages, path, source)


def _from_messages(messages: object, path: str | os.PathLike[str], source: Path) -> Conversation:
    if not isinstance(messages, list):
        raise FormatError(f"{path}: not a list of messages; give a file that /save wrote")
    contents = []
    has_system = messages[:1] != [] and _part(messages[0], "role") == "system"
    for number, message in enumerate(messages[has_system:]):
        role = "assistant" if number % 2 else "user"
        place = f"{path}: message {number + 1 + has_system}"
        if _part(message, "role") != role:
            raise FormatError(f"{place}: expected the role '{role}'; user and assistant take turns")
        contents.append(_content(message, place))
    if len(contents) % 2:
        raise FormatError(f"{path}: the last message has no answer; remove it from the file")
    return Conversation(
        system=_content(messages[0], f"{path}: message 1") if has_system else None,
        exchanges=[Exchange(*pair) for pair in zip(contents[::2], contents[1::2], strict=True)],
        file=source,
    )


def _part(message: object, key: str) -> object:
    return message.get(key) if isinstance(message, dict) else None


def _content(message: object, place: str) -> str:
    content = _part(message, "content")
    if not isinstance(content, str):
        raise FormatError(f"{place}: has no text 'content'")
    try:
        utf8(content, place)
    except RequestError as error:
        raise FormatError(str(error)) from None
    return content


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _place(path: str | os.PathLike[str]) -> Path:
    """The file that a name means: `~` is home, and a link is what it points to."""
    return Path(os.path.realpath(os.path.expanduser(path)))
