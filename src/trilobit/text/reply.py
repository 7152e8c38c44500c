"""An answer as it comes, in its parts: what was thought, what is said, which functions are called.

The same parts whatever pieces the text comes in. What looks like a call and is none stays text.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from trilobit.text.pieces import overlap
from trilobit.text.reasoning import Thoughts
from trilobit.text.tools import BEGIN, END, Form, ToolCall

_TAG = "<|python_tag|>"  # which Llama writes before a call, where it is shown at all
_BETWEEN = " \t\r\n;,"  # of Llama's calls
_ID_BYTES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is new of an answer."""

    thought: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[Part]) -> Part:
        """All of them as one."""
        several = list(parts)
        return cls(
            thought="".join(part.thought for part in several),
            text="".join(part.text for part in several),
            calls=tuple(call for part in several for call in part.calls),
        )


class Reply:
    """Parts an output.

    thoughts: if they are to be told apart. form: how calls are written, if there may be any; names:
    of the functions. salt: what makes the ids of calls those of this answer.
    """

    def __init__(
        self,
        *,
        thoughts: Thoughts | None = None,
        form: Form | None = None,
        names: Collection[str] = (),
        salt: str = "",
    ) -> None:
        self._thoughts, self._form, self._names, self._salt = thoughts, form, names, salt
        self._held = ""
        self._inside = False  # a marked call
        self._said = False  # whether the answer has begun with what is no call of Llama's
        self.called = 0  # functions so far

    def add(self, text: str) -> Part:
        """What is certain by now, and was not given before."""
        if self._thoughts is None:
            return self._part("", text, last=False)
        thought, answer = self._thoughts.add(text)
        return self._part(thought, answer, last=False)

    def finish(self) -> Part:
        """What was held back."""
        thought, answer = self._thoughts.finish() if self._thoughts else ("", "")
        return self._part(thought, answer, last=True)

    def _part(self, thought: str, answer: str, *, last: bool) -> Part:
        if self._form is None:
            return Part(thought=thought, text=answer)
        self._held += answer
        if self._form == "bare":
            text, calls = self._bare(last=last)
        else:
            text, calls = self._marked(last=last)
        return Part(thought=thought, text=text, calls=tuple(calls))

    # ---- calls between marks --------------------------------------------------------------------

    def _marked(self, *, last: bool) -> tuple[str, list[ToolCall]]:
        said = ""
        calls: list[ToolCall] = []
        while True:
            if not self._inside:
                before, mark, after = self._held.partition(BEGIN)
                if not mark:
                    break
                said += before.rstrip() if not self.called else before.strip()
                self._inside, self._held = True, after
            body, mark, after = self._held.partition(END)
            if not mark and not last:
                return said, calls
            # A model may end its answer where the last mark should be.
            found = list(self._calls(body))
            # Behind other calls, one that was cut off is no text: `finish_reason` tells of it.
            said += "" if found or (self.called and not mark) else BEGIN + body + mark
            calls += found
            self._inside, self._held = False, after
        if last:
            rest, self._held = self._held, ""
            if self.called:  # and so is the beginning of its mark
                rest = rest[: len(rest) - overlap(rest, BEGIN)].strip()
            return said + rest, calls
        # Space may be what stands before a call, which is none of the text.
        cut = len(self._held) - overlap(self._held, BEGIN)
        cut = len(self._held[:cut].rstrip())
        given, self._held = self._held[:cut], self._held[cut:]
        return said + (given.lstrip() if self.called else given), calls

    # ---- an answer that is a call ---------------------------------------------------------------

    def _bare(self, *, last: bool) -> tuple[str, list[ToolCall]]:
        calls: list[ToolCall] = []
        while not self._said:
            rest = self._held.lstrip(_BETWEEN if self.called else None)
            rest = rest.removeprefix(_TAG).lstrip()
            if rest[:1] not in ("", "{") and not _TAG.startswith(rest):
                self._said = True
                break
            length = _length_of_object(rest)
            if length == 0:
                if last and self.called:
                    self._held = ""  # cut off
                self._said = last and not self.called
                break
            several = list(self._calls(rest[:length], known=True))
            if not several:
                self._said = True
                break
            calls += several
            self._held = rest[length:]
        if not self._said:
            return "", calls
        given, self._held = self._held, ""
        return given, calls

    # ---- JSON -----------------------------------------------------------------------------------

    def _calls(self, body: str, *, known: bool = False) -> Iterator[ToolCall]:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            return
        several = value if isinstance(value, list) else [value]
        told = [_told(one) for one in several]
        if not all(name and (not known or name in self._names) for name, _ in told):
            return
        for name, arguments in told:
            number, self.called = self.called, self.called + 1
            digest = blake2b(f"{self._salt}/{number}".encode(), digest_size=_ID_BYTES)
            yield ToolCall(id=f"call_{digest.hexdigest()}", name=name, arguments=arguments)


def _told(value: Any) -> tuple[str, str]:
    """Name and arguments of a call, or nothing."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return "", ""
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return name, arguments
    return name, json.dumps(arguments, ensure_ascii=False)


def _length_of_object(text: str) -> int:
    """Of the JSON object that a text begins with; 0: there is none, or not all of it."""
    try:
        return json.JSONDecoder().raw_decode(text)[1] if text.startswith("{") else 0
    except (ValueError, RecursionError):
        return 0
