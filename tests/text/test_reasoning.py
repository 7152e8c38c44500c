"""Thoughts are told apart from answers, whatever pieces a text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilobit.text.reasoning import Parted, Thoughts, is_begun, thinks


def parted(pieces: list[str], *, begun: bool = False) -> Parted:
    thoughts = Thoughts(begun=begun)
    parts = [thoughts.add(piece) for piece in pieces] + [thoughts.finish()]
    return Parted("".join(p.thought for p in parts), "".join(p.answer for p in parts))


@pytest.mark.parametrize(
    ("text", "begun", "thought", "answer"),
    [
        ("<think>\nWho?\n\nMe.\n</think>\n\nHi.\n", False, "Who?\n\nMe.", "Hi.\n"),
        ("<think></think>Hi", False, "", "Hi"),
        ("\n<think>\n\n</think>\n\nHi", False, "", "Hi"),
        ("Who?</think>Hi", True, "Who?", "Hi"),
        ("Hi", False, "", "Hi"),
        ("  \n Hi", False, "", "  \n Hi"),
        ("Hi <think>no</think>", False, "", "Hi <think>no</think>"),
        ("<thin", False, "", "<thin"),
        ("<think>never\nended\n", False, "never\nended", ""),
        ("<think>a </thin b</think>c</think>", False, "a </thin b", "c</think>"),
        ("", False, "", ""),
        ("a\n\n", True, "a", ""),
    ],
)
def test_a_text_is_parted_whatever_its_pieces(
    text: str, begun: bool, thought: str, answer: str
) -> None:
    assert parted([text], begun=begun) == (thought, answer)
    assert parted(list(text), begun=begun) == (thought, answer)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", " ", "<", "th", "ink>", "/"])),
    st.lists(st.integers(1, 5)),
    st.booleans(),
)
def test_pieces_change_nothing(parts: list[str], sizes: list[int], begun: bool) -> None:
    text = "".join(parts)
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    assert parted([*pieces, rest], begun=begun) == parted([text], begun=begun)


def test_what_is_certain_is_given_at_once() -> None:
    thoughts = Thoughts()
    assert thoughts.add("<think>\nWell") == ("Well", "")
    assert thoughts.add("\n") == ("", "")
    assert thoughts.add("so <") == ("\nso ", "")
    assert thoughts.add("/think>") == ("", "")
    assert thoughts.add("Yes") == ("", "Yes")


def test_templates_of_models_that_think_are_known() -> None:
    assert thinks("{{ '<think>\\n\\n</think>' }}")
    assert not thinks("{{ messages }}")
    assert not thinks(None)
    assert is_begun("<|im_start|>assistant\n<think>\n")
    assert not is_begun("<|im_start|>assistant\n<think>\n\n</think>\n\n")
