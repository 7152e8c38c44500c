"""What a model thinks, apart from what it answers: `<think>` out of a text that comes in pieces.

Models that think were taught to do so first, between two marks. Some have the first mark in their
prompt, so that what they write begins with a thought.
"""

from __future__ import annotations

from typing import NamedTuple

from trilobit.text.pieces import overlap

BEGIN, END = "<think>", "</think>"


class Parted(NamedTuple):
    """Of some text, what was thought and what is the answer."""

    thought: str
    answer: str


class Thoughts:
    """Parts a text as it comes, the same whatever pieces it comes in.

    begun: the prompt has the first mark. Line ends beside the marks belong to neither part. Of one
    that is never ended everything is thought.
    """

    def __init__(self, *, begun: bool = False) -> None:
        self._state = "thought" if begun else "before"
        self._held = ""
        self._given = False  # whether the part that it is in has begun

    def add(self, text: str) -> Parted:
        """What is certain by now, and was not given before."""
        self._held += text
        thought = answer = ""
        if self._state == "before":
            told = self._held.lstrip()
            if told.startswith(BEGIN):
                self._state, self._held = "thought", told[len(BEGIN) :]
            elif not BEGIN.startswith(told):
                self._state, self._given = "answer", True  # which no thought came before
        if self._state == "thought":
            before, mark, after = self._held.partition(END)
            if mark:
                thought = self._begun(before).rstrip("\n")
                self._state, self._held, self._given = "answer", after, False
            else:
                # Line ends may be the last ones, and the end of the text a mark's beginning.
                cut = len(before) - overlap(before, END)
                thought = self._begun(before[:cut]).rstrip("\n")
                self._held = before[len(before[:cut].rstrip("\n")) :] if self._given else before
        if self._state == "answer":
            answer = self._begun(self._held)
            self._held = ""
        return Parted(thought, answer)

    def finish(self) -> Parted:
        """What was held back in vain."""
        held, self._held = self._held, ""
        if self._state == "thought":
            return Parted(self._begun(held).rstrip("\n"), "")
        return Parted("", held)

    def _begun(self, text: str) -> str:
        """Without the line ends that a part begins with."""
        if not self._given:
            text = text.lstrip("\n")
            self._given = bool(text)
        return text


def thinks(template: str | None) -> bool:
    """Whether a chat template is of a model that thinks."""
    return template is not None and END in template


def is_begun(prompt: str) -> bool:
    """Whether a prompt ends inside a thought."""
    return prompt.rstrip().endswith(BEGIN)
