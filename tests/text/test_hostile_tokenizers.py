"""Hostile tokenizers are refused in a line, or run within limits; published ones are unharmed."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import textwrap
import time
from types import FrameType

import pytest
from hostile_tokenizers import HARMLESS, MEMORY, REFUSED, read, tokenizer_json
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import normalizers, pre_tokenizers

from trilobit.errors import ContextOverflow, FormatError, RequestError
from trilobit.formats.pre_tokenizers import SPLITS
from trilobit.text.split_pattern import PatternFault, check_pattern
from trilobit.text.tokenizer import Tokenizer

# How published tokenizers split, of those that GGUF has no name for here.
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+END|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*END|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt-4o": _O200K.replace("END", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"),
    "tekken": _O200K.replace("END", ""),
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++"
    r"[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "deepseek-v3": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
    r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek-v3, han": "[一-龥぀-ゟ゠-ヿ]+",
    "deepseek-coder": r"\s?\p{L}+",
    "qwen3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?"
    r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "bloom": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "clip": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
    r"[^\s\p{L}\p{N}]+",
    "spaces": r"\s+",
    "t5": " {2,}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_tokenizers_are_refused_in_one_line(name: str) -> None:
    data, reason = REFUSED[name]
    result = read(data)
    line = result.stdout.decode()
    assert line.startswith("model: tokenizer.json: not a usable tokenizer (")
    assert reason in line
    assert line.count("\n") == 1
    assert len(line) < 600
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_tokenizers_are_run_within_limits_or_refused(name: str) -> None:
    result = read(HARMLESS[name])
    line = result.stdout.decode()
    assert line == "encoded\n" or line.startswith("model: tokenizer.json: ")
    assert line.count("\n") == 1
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_process_without_the_check_would_break_the_limits() -> None:
    data, _ = REFUSED["ten replacements of one letter by ten"]
    code = f"""
    import resource, sys
    from tokenizers import Tokenizer
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
    Tokenizer.from_str(sys.stdin.read()).encode("a" * 20000)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, input=data, capture_output=True, timeout=300)
    assert result.returncode != 0


_PIECES = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "##b", "[UNK]"]
_VOCABULARY = {piece: i for i, piece in enumerate(_PIECES)}
_SCORES = [[piece, -1.0] for piece in _PIECES]
# A trie of one node, without a child.
_EMPTY_CHARSMAP = base64.b64encode(b"\0\x04\0\0" + bytes(1024) + b"a\0").decode()
# How published tokenizers are put together: Llama's, Gemma's, BERT's and T5's.
FORMS: dict[str, dict[str, object]] = {
    "llama": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": _VOCABULARY,
            "merges": [],
            "unk_token": "<unk>",
            "byte_fallback": True,
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    },
    "gemma": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
    "bert": {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece",
            "vocab": _VOCABULARY,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    },
    "t5": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": _EMPTY_CHARSMAP},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
            ],
        },
        "model": {"type": "Unigram", "unk_id": 0, "vocab": _SCORES, "byte_fallback": False},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_published_tokenizers_are_unharmed(form: str) -> None:
    data = tokenizer_json(**FORMS[form])
    text = "a ab  ba é\n b" * 50
    expected = RawTokenizer.from_str(data.decode()).encode(text, add_special_tokens=False).ids
    tokenizer = Tokenizer(data, form)
    assert tokenizer.encode(text, most_tokens=len(expected)) == expected
    assert tokenizer.longest_text() >= 1_000_000


@pytest.mark.parametrize(
    "pattern", sorted({*PATTERNS.values(), *(s for v in SPLITS.values() for s in v)})
)
def test_published_expressions_pass(pattern: str) -> None:
    check_pattern(pattern)
    raw = json.loads(tokenizer_json())
    raw["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    assert Tokenizer(json.dumps(raw).encode(), "published").encode("ab ab") == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "pattern", ["(?=a+)", "a{2,3}+", "[a", "(a", "a)", r"\ca", "(?<n>a)", "a+b"]
)
def test_expressions_that_are_not_plain_are_refused(pattern: str) -> None:
    with pytest.raises(PatternFault):
        check_pattern(pattern)


# ---- lengths --------------------------------------------------------------------------------


def _bytes_tokenizer(**parts: object) -> Tokenizer:
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "vocab": {**vocabulary, "ab": 256}, "merges": ["a b"]}
    return Tokenizer(tokenizer_json(model=model, pre_tokenizer=level, **parts), "bytes")


def test_a_text_is_refused_before_it_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _bytes_tokenizer()
    most = tokenizer.longest_text(100)
    assert 200 <= most <= 400  # "ab" has two bytes; every other token stands for one
    assert len(tokenizer.encode("ab" * 100, most_tokens=100)) == 100
    assert len(tokenizer.encode("a" * most, most_tokens=100)) == most  # only surely too long ones
    monkeypatch.setattr(tokenizer, "_inner", None)  # nothing is asked of it
    with pytest.raises(ContextOverflow, match=r"16,000,001 bytes, more than 100 tokens, .*shorten"):
        tokenizer.encode("a" * 16_000_001, most_tokens=100)
    with pytest.raises(RequestError, match="at most 16,000,000 are encoded at once"):
        tokenizer.encode("a" * 16_000_001)
    monkeypatch.undo()
    with pytest.raises(ContextOverflow):
        tokenizer.encode_chat("{{ messages[0].content }}", [{"content": "a" * 1000}], most_tokens=9)


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": json.loads(normalizers.Replace("aaaa", "").__getstate__())},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Lowercase"}},
    ],
    ids=["replaced", "stripped", "lowercase"],
)
def test_where_a_text_may_shrink_its_length_says_nothing(parts: dict[str, object]) -> None:
    tokenizer = _bytes_tokenizer(**parts)
    tokenizer.encode(" " * 10_000, most_tokens=10)
    assert tokenizer.longest_text(10) == tokenizer.longest_text()


def test_composed_characters_are_counted() -> None:
    tokenizer = _bytes_tokenizer(normalizer={"type": "NFC"})
    text = "\u1112\u1161\u11ab" * 20  # nine bytes each, of which NFC makes three
    assert len(tokenizer.encode(text, most_tokens=60)) == 60


# ---- signals --------------------------------------------------------------------------------


class _Late(BaseException):
    pass


@pytest.mark.parametrize("kind", [_Late, TimeoutError, Exception])
def test_an_exception_of_a_signal_handler_passes(kind: type[BaseException]) -> None:
    tokenizer = _bytes_tokenizer()

    def late(number: int, frame: FrameType | None) -> None:
        raise kind("late")

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(kind, match="late") as caught:  # noqa: PT012
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                tokenizer.encode("ab " * 100_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not isinstance(caught.value, FormatError)
