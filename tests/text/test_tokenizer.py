"""Text to ids and back: nothing lost, no half characters, no special tokens out of user text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RawTokenizer

from trilobit.errors import FormatError, RequestError
from trilobit.text.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "Once upon a time.",
    "كان يا ما كان",
    "👩‍👩‍👧 🦕",
    "a é 漢字 мир\n\t  עולם 🎈 z",
]


def byte_level() -> Tokenizer:
    """Every byte is one token, after two special ones: random ids are mostly broken UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    raw = RawTokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(raw.to_str().encode(), "bytes")


def sentencepiece() -> Tokenizer:
    """As Llama 2's: spaces are part of words, unknown characters fall back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdeé"]
    raw = RawTokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate([*pieces, "▁a", "ab"])},
            [("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    raw.add_special_tokens([AddedToken("<s>", normalized=True), "</s>"])
    raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return Tokenizer(raw.to_str().encode(), "pieces")


def words(decoder: object = None) -> Tokenizer:
    """Whole words, parts of words and punctuation, for decoders that join them."""
    pieces = ["[PAD]", "a", "##b", "b</w>", "c</w>", "▁d", "▁", ".", ",", "'", "é", "e@@", "f"]
    raw = RawTokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, "a"))
    if decoder is not None:
        raw.decoder = decoder
    raw.add_special_tokens(["[PAD]"])
    return Tokenizer(raw.to_str().encode(), "words")


BYTES = byte_level()
PIECES = sentencepiece()
ALL = {
    "bytes": BYTES,
    "pieces": PIECES,
    "no decoder": words(),
    "wordpiece": words(decoders.WordPiece()),
    "suffixes": words(decoders.BPEDecoder()),
    "metaspace": words(decoders.Metaspace()),
    "metaspace kept": words(decoders.Metaspace(prepend_scheme="never")),
    "stripped": words(decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])),
}


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.add(i) for i in ids), stream.finish()]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_trained_tokenizer_keeps_text(tokenizer_json: Path) -> None:
    tokenizer = Tokenizer(tokenizer_json.read_bytes(), "trained")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_utf8_is_refused() -> None:
    with pytest.raises(RequestError, match=r"not UTF-8 text \(the byte 0xff at character 2\)"):
        BYTES.encode("a\udcffb")
    with pytest.raises(RequestError, match=r"not UTF-8 text \(half a character at character 1\)"):
        BYTES.encode("\ud800")
    messages = [{"role": "user", "content": "\ud800"}]
    with pytest.raises(RequestError, match="the conversation: not UTF-8 text"):
        BYTES.encode_chat("{{ messages[0].content }}", messages)


@pytest.mark.parametrize("name", ALL)
def test_streamed_text_equals_the_whole_text(name: str) -> None:
    tokenizer = ALL[name]

    @settings(max_examples=200)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    def check(ids: list[int]) -> None:
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)

    check()


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0x80, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0x98]), min_size=150))
def test_long_runs_of_broken_bytes_stream_as_they_decode(data: list[int]) -> None:
    letter = {v: k for k, v in _byte_ids().items()}
    for tokenizer, ids in ((BYTES, [letter[b] for b in data]), (PIECES, [3 + b for b in data])):
        assert "".join(pieces_of(tokenizer, ids)) == bytes(data).decode("utf-8", "replace")


def test_a_stream_does_not_decode_more_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    class Counted(Tokenizer):
        def decode(self, ids: Sequence[int]) -> str:
            lengths.append(len(ids))
            return super().decode(ids)

    raw = BYTES._inner.to_str().encode()
    letter = {v: k for k, v in _byte_ids().items()}
    stream = Counted(raw, "counted").stream()
    for _ in range(2000):
        stream.add(letter[0x80])
    assert max(lengths) < 100


@pytest.mark.parametrize("text", [*TEXTS, "a▁b", "é" * 50])
def test_whole_characters_decode_as_tokenizers_has_it(text: str) -> None:
    for tokenizer in (BYTES, PIECES):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == tokenizer._inner.decode(ids)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab")
    first, second = sorted(tokenizer.special_ids)
    shown = [first, *ids, second, *ids, first]
    assert tokenizer.decode(shown) == tokenizer.decode(ids + ids)
    assert "".join(pieces_of(tokenizer, shown)) == tokenizer.decode(ids + ids)


def test_one_broken_byte_costs_one_character() -> None:
    ids = [3 + b for b in "漢字".encode() + b"\xff" + "é".encode()]
    assert PIECES.decode(ids) == "漢字\ufffdé"


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xf0\x9f\x98\x80", b"\xf0\x9f\x98", b"a\xe2\x82", b"\xe2\x82a", b"\x80" * 9],
)
def test_broken_bytes_stream_as_they_decode(data: bytes) -> None:
    letter = {v: k for k, v in _byte_ids().items()}
    for tokenizer, ids in ((BYTES, [letter[b] for b in data]), (PIECES, [3 + b for b in data])):
        assert "".join(pieces_of(tokenizer, ids)) == data.decode("utf-8", "replace")


def _byte_ids() -> dict[int, int]:
    """Which byte each id is: GPT-2 moves the bytes that cannot be printed behind the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in printable]
    character = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(moved)}
    ids = {BYTES.token_id(c): b for b, c in character.items()}
    return {i: b for i, b in ids.items() if i is not None}


@settings(max_examples=150)
@given(st.text(st.sampled_from("ab é漢🎈 "), max_size=12))
def test_streamed_text_never_shows_half_a_character(text: str) -> None:
    for tokenizer in (BYTES, PIECES):
        pieces = pieces_of(tokenizer, tokenizer.encode(text))
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_special_tokens_in_messages_stay_text() -> None:
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    content = "x</s><s>y"
    ids = BYTES.encode_chat(template, [{"role": "user", "content": content}])
    assert ids == [0, *BYTES.encode(content), 1]
    assert not BYTES.special_ids & set(BYTES.encode(content))
    assert BYTES.encode("<s>a</s>", special=True) == [0, *BYTES.encode("a"), 1]


def test_special_tokens_spelt_as_a_role_stay_text() -> None:
    template = "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    ids = BYTES.encode_chat(template, [{"role": "<s>", "content": "a"}])
    assert ids == [0, *BYTES.encode("<s>:a"), 1]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["<s>", "</s>", "<", "s", ">", "\U000f0000", "a", " "])))
def test_no_text_of_a_message_becomes_a_special_token(parts: list[str]) -> None:
    content = "".join(parts)
    ids = BYTES.encode_chat("<s>{{ messages[0].content }}", [{"role": "a", "content": content}])
    assert ids == [0, *BYTES.encode(content)]


def test_a_private_character_of_the_template_is_its_own() -> None:
    template = "\U000f0000{{ messages[0].content }}"
    ids = BYTES.encode_chat(template, [{"role": "user", "content": "<s>"}])
    assert BYTES.decode(ids) == "\U000f0000<s>"


def test_special_prefix_is_what_the_tokenizer_adds() -> None:
    assert PIECES.special_prefix() == [1]
    assert BYTES.special_prefix() == []


def test_vocab_size_counts_holes() -> None:
    raw = RawTokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
    tokenizer = Tokenizer(raw.to_str().encode(), "holes")
    assert tokenizer.vocab_size == 10
    assert tokenizer.token(5) is None
    assert tokenizer.decode([5]) == ""


def test_truncation_and_padding_of_training_are_not_kept() -> None:
    raw = RawTokenizer.from_str(BYTES._inner.to_str())
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    tokenizer = Tokenizer(raw.to_str().encode(), "cut")
    assert tokenizer.encode("abcdef") == BYTES.encode("abcdef")
    assert tokenizer.encode("a") == BYTES.encode("a")


def _with_regex(pattern: str) -> bytes:
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Split("PATTERN", "isolated")
    content = json.loads(raw.to_str())
    content["pre_tokenizer"]["pattern"] = {"Regex": pattern}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", b"\xff\xfe{}", b"{}", b"[]", b'{"model": null}', _with_regex("(")],
    ids=["empty", "garbage", "not utf-8", "object", "list", "no model", "bad regex"],
)
def test_unusable_files_are_named(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^model\.x: tokenizer\.json: not a usable tokenizer"):
        Tokenizer(data, "model.x")


def test_a_regex_that_would_panic_is_refused_before(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FormatError, match=r"^model\.x: tokenizer\.json: not a usable .* repeats"):
        Tokenizer(_with_regex("(a+)+[bd]"), "model.x")
    assert capfd.readouterr() == ("", "")


def test_threads_do_not_share_the_special_setting() -> None:
    text = "a<s>b</s>"
    expected = {special: BYTES.encode(text, special=special) for special in (False, True)}
    wanted = [n % 2 == 0 for n in range(400)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda special: BYTES.encode(text, special=special), wanted))
    assert got == [expected[special] for special in wanted]
