"""tokenizer.json files that would take all time or memory, or panic: `python
tests/hostile_tokenizers.py` reads each in a process of its own and says what became of it.

Each is read and encodes one text, as a model that a stranger published would have it. It may be
run or refused in one line; neither may take more than the limits below.
"""

from __future__ import annotations

import base64
import json
import resource
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

MEMORY = 4 << 30  # of the address space; the interpreter and its libraries take one of them
SECONDS = 60
TEXT = "a" * 20_000

_READ = """
import resource, sys
from trilobit import TrilobitError
from trilobit.text.tokenizer import Tokenizer
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
data = sys.stdin.buffer.read()
try:
    tokenizer = Tokenizer(data, "model")
    ids = tokenizer.encode({text!r})
    tokenizer.special_prefix()
    tokenizer.decode(ids[:100])
except TrilobitError as error:
    print(error)
else:
    print("encoded")
"""


def read(data: bytes, text: str = TEXT) -> subprocess.CompletedProcess[bytes]:
    """What a process with the limits makes of a file: its output is one line."""
    code = _READ.format(memory=MEMORY, text=text)
    return subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, timeout=SECONDS
    )


def tokenizer_json(**parts: Any) -> bytes:
    """A small sound tokenizer, with some of its parts in place of its own."""
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    return json.dumps({**whole, **parts}).encode()


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _normalizers(*steps: Any) -> bytes:
    return tokenizer_json(normalizer={"type": "Sequence", "normalizers": list(steps)})


def _split(pattern: str) -> bytes:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer_json(pre_tokenizer=step)


def _charsmap(data: bytes) -> bytes:
    text = base64.b64encode(data).decode()
    return tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": text})


def _trie(byte: int, *, value: int) -> bytes:
    """The size and a trie of 512 units that knows one byte, and where its text begins."""
    units = [0] * 512
    units[byte] = byte | 1 << 8 | (256 ^ byte) << 10  # a leaf, whose value stands in unit 256
    units[256] = value
    return struct.pack("<513I", 4 * 512, *units)


def _template(ids: int, times: int, texts: int = 1) -> dict[str, Any]:
    token = {"SpecialToken": {"id": "a", "type_id": 0}}
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token] * times + [piece] * texts,
        "pair": [piece, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"a": {"id": "a", "ids": [0] * ids, "tokens": ["a"] * ids}},
    }


_TEN = _replace({"String": "a"}, "a" * 10)
_BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
_NESTED: Any = {"type": "NFC"}
for _ in range(100):
    _NESTED = {"type": "Sequence", "normalizers": [_NESTED]}


# What must be refused, each with a word of the reason.
def _added(token_id: int, content: str, **takes: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": content, **plain, **takes}


REFUSED: dict[str, tuple[bytes, str]] = {
    "ten replacements of one letter by ten": (_normalizers(*[_TEN] * 10), "times as long"),
    "signs that are no characters": (
        tokenizer_json(pre_tokenizer={"type": "Split\x7f\u200b", "pattern": {"Regex": "(a+)+"}}),
        "Split??",
    ),
    "a type that is no word": (
        tokenizer_json(pre_tokenizer={"type": {"Regex": "a"}, "behavior": "Isolated"}),
        "no word",
    ),
    "replacements without a type": (
        _normalizers(*[{k: v for k, v in _TEN.items() if k != "type"}] * 10),
        "times as long",
    ),
    "replacement of nothing": (
        _normalizers(_replace({"Regex": "b?|c*"}, "a" * 10)),
        "replaces nothing",
    ),
    "a replacement of an empty text": (
        _normalizers(_replace({"String": ""}, "a")),
        "replaces nothing",
    ),
    "an empty prefix": (
        tokenizer_json(normalizer={"type": "Prepend", "prepend": ""}),
        "empty 'prepend'",
    ),
    "prefixes of a megabyte": (
        tokenizer_json(normalizer={"type": "Prepend", "prepend": "a" * 1_000_000}),
        "times as long",
    ),
    "forty times in bytes": (
        tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [_BYTES] * 40}),
        "times as long",
    ),
    "a decoder that grows": (
        tokenizer_json(decoder={"type": "Sequence", "decoders": [_TEN] * 10}),
        "times as long",
    ),
    "many steps": (_normalizers(*[{"type": "NFC"}] * 1000), "1,001 steps"),
    "sequences in sequences": (tokenizer_json(normalizer=_NESTED), "steps"),
    "a charsmap of 4 GB": (_charsmap(b"\xfc\xff\xff\xff" + bytes(16)), "claims a trie"),
    "no charsmap": (tokenizer_json(normalizer={"type": "Precompiled"}), "has no"),
    "a charsmap cut": (_charsmap(b"\x10"), "claims a trie"),
    "a charsmap that is not base64": (
        tokenizer_json(normalizer={"type": "Precompiled", "precompiled_charsmap": "é"}),
        "not base64",
    ),
    "a charsmap that points behind its end": (
        _charsmap(b"\0\x04\0\0" + b"\xff" * 1024 + b"a\0"),
        "behind its end",
    ),
    "a charsmap that points behind its texts": (
        _charsmap(_trie(97, value=1000) + b"a\0"),
        "behind its texts",
    ),
    "a charsmap that points into a character": (
        _charsmap(_trie(97, value=1) + "é".encode()),
        "into a character",
    ),
    "a charsmap of long texts": (
        _charsmap(_trie(97, value=1) + b"aa" * 500_000),
        "times as long",
    ),
    "repetitions of repetitions": (_split("(a+)+$"), "repeats what repeats"),
    "repetitions of alternatives": (_split("(a|a)*b"), "repeats what repeats"),
    "repetitions behind repetitions": (_split("a*a*a*a*b"), "goes on behind"),
    "thirty options": (_split("a?" * 30 + "a" * 30), "very many ways"),
    "a reference back": (_split(r"(a)\1"), "reference back"),
    "a look behind": (_split("(?<=a)b"), "group"),
    "a look ahead without end": (_split("(?=a+)"), "looks ahead"),
    "copies of copies": (_split("((((a{1000}){1000}){1000}){1000})"), "repeats"),
    "a published expression without its rest": (_split(r"\s*[\r\n]+"), "without"),
    "a replacement by an expression": (_normalizers(_replace({"Regex": "(a+)+$"}, "")), "repeats"),
    "tokens around a text": (
        tokenizer_json(post_processor=_template(10_000, 10_000)),
        "adds 100,000,000 tokens",
    ),
    "tokens that nothing describes": (
        tokenizer_json(post_processor={**_template(1, 1), "special_tokens": {}}),
        "does not describe",
    ),
    "a text of a pair where there is one": (
        tokenizer_json(
            post_processor={
                **_template(1, 1),
                "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            }
        ),
        "a second text",
    ),
    "no text at all": (tokenizer_json(post_processor=_template(1, 1, 0)), "to 0 texts"),
    "merges to more than any token": (
        tokenizer_json(model={"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["aa", "aa"]]}),
        "more than any",
    ),
    "merges without their prefix": (
        tokenizer_json(
            model={
                "type": "BPE",
                "vocab": {"a": 0, "aa": 1},
                "merges": ["a a"],
                "continuing_subword_prefix": "####",
            }
        ),
        "does not begin with",
    ),
    "an added token that is stripped to nothing": (
        tokenizer_json(
            normalizer={"type": "Strip", "strip_left": True, "strip_right": True},
            added_tokens=[
                {
                    "id": 51,
                    "content": " ",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": True,
                    "special": False,
                }
            ],
        ),
        "to nothing",
    ),
    "an added token of spaces that takes more of them": (
        tokenizer_json(added_tokens=[_added(51, " ", lstrip=True), _added(52, "x", rstrip=True)]),
        "takes the spaces before it and is nothing else",
    ),
    "an added token that a normalizer makes spaces": (
        tokenizer_json(
            normalizer={"type": "Replace", "pattern": {"String": "_"}, "content": " "},
            added_tokens=[
                _added(51, "_", lstrip=True, normalized=True),
                _added(52, "x", rstrip=True),
            ],
        ),
        "takes the spaces before it and is nothing else",
    ),
    "two words of one id": (
        tokenizer_json(model={"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 1}, "merges": []}),
        "'b' and 'c' have one id, 1",
    ),
    "two added tokens of one id": (
        tokenizer_json(added_tokens=[_added(51, "x"), _added(51, "y")]),
        "'x' and 'y' have one id, 51",
    ),
    "an added token with the id of a word": (
        tokenizer_json(added_tokens=[_added(1, "x")]),
        "'b' and 'x' have one id, 1",
    ),
    "templates of templates": (
        tokenizer_json(
            post_processor={"type": "Sequence", "processors": [_template(1, 1), _template(1, 1)]}
        ),
        "several templates",
    ),
    "a text many times": (
        tokenizer_json(post_processor={"type": "Sequence", "processors": [_template(1, 1, 10)]}),
        "to 10 texts",
    ),
    "words without an end": (
        tokenizer_json(
            model={
                "type": "WordPiece",
                "vocab": {"[UNK]": 0, "a": 1},
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 1 << 40,
            }
        ),
        "words of",
    ),
    "a key twice": (b'{"normalizer": null, ' + _normalizers(*[_TEN] * 10)[1:], "twice"),
    "lists in lists": (tokenizer_json(x=None)[:-5] + b"[" * 100_000, "lists in lists"),
    "lists beside lists": (tokenizer_json(x=None)[:-5] + b"[[]" + b",[]" * 9_000_000, "values"),
    "numbers of many digits": (tokenizer_json(x=None)[:-5] + b"9" * 10_000 + b"}", "digits"),
    "pieces of no length": (
        tokenizer_json(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "0",
    ),
    "a strip from the end": (
        tokenizer_json(decoder={"type": "Strip", "content": "a", "start": 0, "stop": 3}),
        "stop",
    ),
}
# What may be run as it is, within the limits.
HARMLESS: dict[str, bytes] = {
    "sound": tokenizer_json(),
    "an id of bytes beyond characters": tokenizer_json(
        model={"type": "BPE", "vocab": {"a": 0, "<0xFF>": 1}, "merges": [], "byte_fallback": True},
        decoder={"type": "ByteFallback"},
    ),
    "a sum of lengths without an end": tokenizer_json(
        decoder={"type": "Strip", "content": "a", "start": 2**62, "stop": 0}
    ),
    "a decoder of words": tokenizer_json(
        decoder={"type": "WordPiece", "prefix": "", "cleanup": True}
    ),
    "a decoder of speech": tokenizer_json(
        decoder={"type": "CTC", "pad_token": "a", "word_delimiter_token": "a", "cleanup": True}
    ),
    "dropout of all": tokenizer_json(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 1.0}
    ),
    "an unknown token that is not there": tokenizer_json(
        model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "?"}
    ),
    "special words of a BERT that are not there": tokenizer_json(
        post_processor={"type": "BertProcessing", "sep": ["x", 10**9], "cls": ["y", 10**9]}
    ),
    "offsets that are trimmed": tokenizer_json(
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    ),
    "padding to 10^12": tokenizer_json(
        padding={
            "strategy": {"Fixed": 10**12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "a",
        }
    ),
    "truncation with a stride of 10^12": tokenizer_json(
        truncation={
            "direction": "Right",
            "max_length": 1,
            "strategy": "LongestFirst",
            "stride": 10**12,
        }
    ),
    "an id near 2^32": tokenizer_json(
        model={"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": []}
    ),
    "a unigram's unknown beyond its end": tokenizer_json(
        model={"type": "Unigram", "unk_id": 10**9, "vocab": [["a", 0.0]], "byte_fallback": False}
    ),
    "merges of unknown tokens": tokenizer_json(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}
    ),
    "an empty split": tokenizer_json(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": ""},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "an empty metaspace": tokenizer_json(pre_tokenizer={"type": "Metaspace", "replacement": ""}),
    "an empty added token": tokenizer_json(added_tokens=[{"id": 0, "content": ""}]),
}


def main() -> None:
    """Say what becomes of each."""
    files = {name: data for name, (data, _) in REFUSED.items()} | HARMLESS
    for name, data in files.items():
        result = read(data)
        line = (result.stdout + result.stderr).decode(errors="replace").strip()
        print(f"{name}: {result.returncode}: {line[:300]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"most memory of one: {used.ru_maxrss / 1024:,.0f} MB; time of all: {used.ru_utime:.0f} s"
    )


if __name__ == "__main__":
    main()
