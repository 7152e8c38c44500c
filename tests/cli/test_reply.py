"""Replies on a terminal: Markdown turned into styles as it comes, in lines of whole words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from test_chat import PATIENCE_S, Open, chat_model, environment, terminal  # noqa: F401
from wcwidth import iter_graphemes

from trilobit.cli.chat.markdown import Markdown
from trilobit.cli.chat.reply import Reply
from trilobit.cli.chat.waiting import progress_line
from trilobit.cli.chat.wrap import Wrap, columns

STYLE = re.compile(r"\x1b\[([0-9;]*)m")
FAMILY, FLAG, ACCENT = "👨‍👩‍👧‍👦", "🇩🇪", "e\u0301\u0323"
WIDTHS = (1, 2, 10, 20, 33, 80, 5000)


def wrapped(text: str, width: int, size: int) -> str:
    shown: list[str] = []
    wrap = Wrap(lambda: width, lambda part, _: shown.append(part))
    for at in range(0, len(text), size):
        wrap.add(text[at : at + size])
    wrap.finish()
    return "".join(shown)


def styled(text: str, *, width: int = 60, size: int = 3, styles: bool = True) -> str:
    """What is shown, a style as `<1>...</>`."""
    shown: list[tuple[str, str]] = []
    wrap = Wrap(lambda: width, lambda part, style: shown.append((style, part)))
    markdown = Markdown(wrap, styled=styles, width=lambda: width)
    for at in range(0, len(text), size):
        markdown.add(text[at : at + size])
    markdown.finish()
    out = "".join(f"<{style}>{part}</>" if style else part for style, part in shown)
    while (joined := re.sub(r"<([\d;]+)>([^<]*)</><\1>", r"<\1>\2", out)) != out:
        out = joined
    return out


# ---- lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_words_and_clusters_are_not_cut_at_the_edge(width: int) -> None:
    text = (
        f"The quick brown fox, 漢字かな交じり文 {FAMILY * 9}{FLAG * 9} {ACCENT * 30} and  two\tend"
    )
    whole = wrapped(text, width, len(text))
    assert all(wrapped(text, width, size) == whole for size in (1, 3))
    assert "".join(whole.split()) == "".join(text.split())
    clusters = [*iter_graphemes(text)]
    assert [c for c in iter_graphemes(whole) if not c.isspace()] == [
        c for c in clusters if not c.isspace()
    ]
    for line in whole.split("\n"):
        if width >= 30 or (ACCENT not in line and width >= 5):  # longer words are the terminal's
            assert columns(line.rstrip()) <= width, line
    if width >= 10:
        assert {"quick", "brown", "fox,"} <= {*whole.split()}
    if width == 5000:
        assert whole == text


def test_tabs_and_pictures_of_controls_take_their_columns() -> None:
    assert wrapped("a\tb c", 10, 1) == "a\tb\nc"  # b stands in column 9
    assert wrapped("␛[0m ␛[0m", 8, 1) == "␛[0m\n␛[0m"
    assert wrapped("aaaa " + ACCENT * 4, 8, 1) == "aaaa\n" + ACCENT * 4
    assert wrapped("aaa " + ACCENT * 4, 8, 1) == "aaa " + ACCENT * 4


def test_a_word_longer_than_the_line_is_left_to_the_terminal() -> None:
    assert wrapped("see " + "z" * 25 + " end", 10, 1) == "see\n" + "z" * 25 + " end"
    assert wrapped("z" * 28 + " end", 10, 1) == "z" * 28 + "\nend"


def test_a_cluster_without_end_is_not_held_back() -> None:
    shown: list[str] = []
    wrap = Wrap(lambda: 20, lambda part, _: shown.append(part))
    for _ in range(3000):
        wrap.add("漢" + "\u0301" * 40)
    assert len("".join(shown)) > 100_000


def test_a_line_of_a_hundred_thousand_characters_is_no_work() -> None:
    text = "x" * 100_000  # quadratic in the width, it would take minutes
    assert wrapped(text, 100_000, 10) == text
    assert wrapped(text, 5000, 10).replace("\n", "") == text


# ---- Markdown ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Big *one*\nthen", "<1;4>Big</> <1;4;3>one</>\nthen"),
        ("### Small", "<1>Small</>"),
        ("a **b c** d", "a <1>b</> <1>c</> d"),
        ("a *b* _c_ ***d*** ~~e~~", "a <3>b</> <3>c</> <1;3>d</> <9>e</>"),
        ("**a *b***", "<1>a</> <1;3>b</>"),
        ("use `a*b*c` and ``x`y``", "use <36>a*b*c</> and <36>x`y</>"),
        ("**太字**です", "<1>太字</>です"),
        ("2*3*4, 2 * 3 * 4, snake_case_name", "2*3*4, 2 * 3 * 4, snake_case_name"),
        ("`__init__` and __init__.py", "<36>__init__</> and __init__.py"),
        ("**never closed\nnext **line**", "**never closed\nnext <1>line</>"),
        ("\\*no\\* \\(x_1\\) $a_i$", "*no* \\(x_1\\) $a_i$"),
        ("https://a.b/_c_/*d* [e](http://f/_g_)", "https://a.b/_c_/*d* [e](http://f/_g_)"),
        ("```py\na = `b` **c**\n```\nd", "<2>```py</>\n<36>a = `b` **c**</>\n<2>```</>\nd"),
        ("~~~\n```\n~~~", "<2>~~~</>\n<36>```</>\n<2>~~~</>"),
        ("```no``` fence", "<36>no</> fence"),
        ("    indented *code*", "<36>    indented *code*</>"),
        ("- a\n    - *b*\n\n    more *c*", "- a\n    - <3>b</>\n\n    more <3>c</>"),
        ("---\n***\n- - -", "<2>---</>\n<2>***</>\n<2>- - -</>"),
        ("#tag #1\n1984 was\n-5\n*", "#tag #1\n1984 was\n-5\n*"),
        ("| no | table\ntext", "| no | table\ntext"),
        ("| a |\n| b |", "| a |\n| b |"),
        ("\n\na\n\n", "\n\na\n\n"),
    ],
)
def test_markdown_is_shown_as_styles(text: str, shown: str) -> None:
    for size in (1, 2, 3, len(text)):
        assert styled(text, size=size) == shown


def test_items_and_quotes_go_on_below_their_beginning() -> None:
    text = (
        "1. one two three\n  - four five six\n   ten eleven twelve\n> seven eight\n ten eleven two"
    )
    lines = styled(text, width=12).split("\n")
    assert lines[:4] == ["1. one two", "   three", "  - four", "    five six"]
    assert lines[4:7] == ["   ten", "   eleven", "   twelve"]
    assert lines[7:] == ["> seven", "  eight", " ten eleven", "two"]


def test_words_come_before_their_paragraph_ends() -> None:
    shown: list[str] = []
    wrap = Wrap(lambda: 80, lambda part, _: shown.append(part))
    markdown = Markdown(wrap, styled=True, width=lambda: 80)
    markdown.add("The quick *brown fox")
    assert "".join(shown) == "The quick"
    markdown.add("* jumps o")
    assert "".join(shown) == "The quick brown fox jumps"
    markdown.add("*" + "long " * 100)  # nothing is held back for ever
    assert "".join(shown).endswith("long long")


def test_a_table_is_drawn_when_it_is_whole() -> None:
    text = "| Name | Value |\n|------|------:|\n| **a** | `1` |\n| b | 22 |\nafter\n"
    for size in (1, len(text)):
        shown = styled(text, width=40, size=size)
        assert "\x1b[1ma\x1b[0m" in shown
        lines = STYLE.sub("", shown).split("\n")
        assert [line.rstrip() for line in lines[:1] + lines[2:]] == [
            "Name   Value",
            "a          1",
            "b         22",
            "after",
            "",
        ]
    narrow = styled(text, width=11)
    assert narrow.startswith("| Name |\nValue |")  # too narrow to draw: as it is


def test_nothing_of_a_table_is_lost() -> None:
    text = (
        "|a|b|\n|:-:|--|\n|List<int>|x<br>y|too many|\n|few|\n|__init__|a\\|b|\n|" + "z" * 50 + "|"
    )
    for width in (20, 40, 80):
        shown = STYLE.sub("", styled(text, width=width))
        assert max(map(columns, shown.split("\n"))) <= width
        assert shown.count("z") == 50
        if width > 20:
            for word in ("List<int>", "x", "y", "too many", "few", "__init__", "a|b"):
                assert word in shown


def test_what_is_not_styled_keeps_its_marks() -> None:
    text = "# A *b*\n`c`\n```\nd e\n```\n| f |\n|---|\n| g |\n---\nend **x"
    assert styled(text, styles=False) == text


@pytest.mark.parametrize("unit", ["*", "`", "**a ", "*a b", "- ", "|", "_", "> ", "```", "\\", "🇩"])
def test_marks_without_end_are_bounded_work(unit: str) -> None:
    text = unit * 20_000
    shown = STYLE.sub("", re.sub(r"<[\d;]+>|</>", "", styled(text, size=5)))
    assert set(shown) <= {*text, "\n", " "}


# ---- on a terminal ----------------------------------------------------------------------------

SHOW = """
import sys
from trilobit.cli.chat.reply import Reply
reply = Reply(plain="--plain" in sys.argv)
for piece in ("**bold** and ", "`co", "de` \\x1b[2J\\x9b", " words "):
    reply.add(piece)
reply.finish()
"""


def on_terminal(*arguments: str, **variables: str) -> str:
    master, slave = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "20", "LINES": "24", **variables}
    env = {name: value for name, value in env.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *arguments], stdout=slave, env=env, timeout=PATIENCE_S
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # EIO: nobody holds the other side any more
        while data := os.read(master, 10_000):
            shown += data
    os.close(master)
    assert done.returncode == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_plain_and_no_color_leave_the_text_as_it_is() -> None:
    plain = "**bold** and `code` ␛[2J\ufffd words "
    assert on_terminal(NO_COLOR="") == (
        "\x1b[1mbold\x1b[0m and \x1b[36mcode\x1b[0m ␛[2J\ufffd\nwords "
    )
    assert on_terminal("--plain", NO_COLOR="") == plain
    for variables in ({"NO_COLOR": "1"}, {"TERM": "dumb", "NO_COLOR": ""}):
        assert on_terminal(**variables) == "**bold** and `code`\n␛[2J\ufffd words "


def test_what_is_no_terminal_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    reply = Reply(plain=False)
    reply.add("# a **b** \x1b[1m")
    reply.finish()
    assert capsys.readouterr().out == "# a **b** \x1b[1m"


# ---- while it is waited for -------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 8, 20, 33, 80])
def test_the_line_of_progress_never_wraps(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for done, total in ((0, 1), (70_000, 65_536), (123_456, 1_048_576)):
        assert len(progress_line("⠋", done, total)) < width
    shown = {
        1: "",
        3: "⠋",
        8: "⠋ 50%",
        20: "⠋ 4,000 of 8,000",
        80: "⠋ reading 4,000 of 8,000 tokens",
    }
    assert progress_line("⠋", 4000, 8000) == shown.get(width, shown[80])


def test_a_long_prompt_is_waited_for_on_one_line(
    terminal: Open,  # noqa: F811
    endless_model: Path,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    environment |= {"COLUMNS": "20", "LINES": "24", "NO_COLOR": "1"}
    chat = terminal(endless_model, "--max-tokens", "2")
    talk = tmp_path / "talk.json"
    words = "The girl and the dog ran in the park. " * 12_000  # minutes, at least
    talk.write_text(
        f'[{{"role": "user", "content": "{words}"}}, {{"role": "assistant", "content": "Yes."}}]'
    )
    chat.ask(f"/load {talk}")
    chat.type("And then?\r")
    chat.expect("\r\x1b[2K⠋ ")  # with styles, one would stand between
    assert chat.expect(" ")[:-1].replace(",", "").isdigit()
    chat.type("\x03")
    rest = chat.expect("stopped before the reply began")
    lines = re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏][^\r\n]*", rest)
    assert max(map(len, lines), default=0) < 20
