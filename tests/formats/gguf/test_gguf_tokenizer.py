"""A tokenizer that goes through GGUF's keys gives the same ids; damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_image import BOOL, F32, I32, STRING, U32, array, image, pair, scalar
from gguf_models import RandomSource, tokens, whole_config
from gguf_models import write_gguf as as_converter
from hypothesis import given
from hypothesis import strategies as st
from sentence_pieces import TEXTS, merged, pieces
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import Tokenizer as HuggingFace

from trilobit import FormatError, UnsupportedModel
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.reader import GGUFModel
from trilobit.formats.gguf.tokenizer import Vocabulary
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.text_files import TextFiles
from trilobit.formats.tokenizer_json import from_vocabulary
from trilobit.text import chat_template
from trilobit.text.tokenizer import Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(expression: str) -> Any:
    return pre_tokenizers.Split(Regex(expression), "isolated")


# As the models' own tokenizer.json files have them.
PRE: dict[str, tuple[list[Any], bool, bool]] = {  # steps, ignore_merges, NFC
    "gpt-2": ([pre_tokenizers.ByteLevel(add_prefix_space=False)], False, False),
    "llama-bpe": ([split(LLAMA3), BYTES], True, False),
    "dbrx": ([split(LLAMA3), BYTES], False, False),
    "qwen2": ([split(LLAMA3.replace("{1,3}", "")), BYTES], False, True),
    "smollm": (
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ],
        False,
        False,
    ),
    "falcon": (
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            split("[0-9][0-9][0-9]"),
        ],
        False,
        False,
    ),
}
EOT = "<|end|>"


def byte_level(name: str) -> HuggingFace:
    """A small byte-level BPE tokenizer that splits as the named one."""
    steps, ignore_merges, nfc = PRE[name]
    made = HuggingFace(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    made.decoder = decoders.ByteLevel()
    if nfc:
        made.normalizer = normalizers.NFC()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<bos>", EOT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(TEXTS * 2, trainer)
    made.add_tokens([AddedToken("<tool call>", normalized=False)])
    return made


def round_trip(path: Path, made: HuggingFace, **text: Any) -> GGUFModel:
    """A model with this tokenizer, written and read."""
    raw = made.to_str().encode()
    files = TextFiles(tokenizer=raw, **text)
    source = RandomSource(whole_config(vocab_size=640, bos_token_id=0, eos_token_ids=(1,)))
    source.text = files
    write_gguf(source, path)
    return GGUFModel(path)


def from_keys(model: GGUFModel) -> Tokenizer:
    """The tokenizer that the keys make, without the file's copy of tokenizer.json."""
    return Tokenizer(from_vocabulary(Vocabulary(model.file)), "keys")


@pytest.mark.parametrize("name", PRE)
def test_byte_level_tokenizers_go_through_the_keys(tmp_path: Path, name: str) -> None:
    made = byte_level(name)
    model = round_trip(tmp_path / "m.gguf", made, add_bos=True)
    assert model.file.text("tokenizer.ggml.pre") == name
    ours, theirs = from_keys(model), Tokenizer(made.to_str().encode(), "original")
    for text in TEXTS:
        for special in (False, True):
            ids = ours.encode(text, special=special)
            assert ids == theirs.encode(text, special=special), text
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.special_ids == theirs.special_ids == {0, 1}
    assert ours.encode("<tool call>") == theirs.encode("<tool call>")
    assert ours.special_prefix() == [0]
    assert (model.config.bos_token_id, model.config.eos_token_ids) == (0, (1,))


def test_the_tokenizer_comes_back_as_it_was_with_its_template(tmp_path: Path) -> None:
    made = byte_level("gpt-2")
    model = round_trip(tmp_path / "m.gguf", made, add_bos=True, chat_template="{{ messages }}")
    assert model.text == TextFiles(
        tokenizer=made.to_str().encode(), chat_template="{{ messages }}", add_bos=True
    )
    assert not round_trip(tmp_path / "n.gguf", made, add_bos=False).text.add_bos


def test_a_tokenizer_without_a_name_in_gguf_is_not_written(tmp_path: Path) -> None:
    made = byte_level("gpt-2")
    made.pre_tokenizer = pre_tokenizers.Sequence([split(r"\w+"), BYTES])
    with pytest.raises(UnsupportedModel, match="GGUF has no name for its tokenizer's pre_tok"):
        round_trip(tmp_path / "m.gguf", made)
    unigram = HuggingFace(models.Unigram([("a", 0.0)]))
    with pytest.raises(UnsupportedModel, match="its tokenizer is 'Unigram'"):
        round_trip(tmp_path / "m.gguf", unigram)
    assert not list(tmp_path.iterdir())


def test_a_model_without_tokenizer_stays_one(tmp_path: Path) -> None:
    write_gguf(RandomSource(whole_config()), tmp_path / "m.gguf")
    assert GGUFModel(tmp_path / "m.gguf").text == TextFiles()


# ---- SentencePiece ------------------------------------------------------------------------------


def sentence_piece(path: Path, *more: bytes) -> Vocabulary:
    texts, scores, kinds = pieces()
    keys = [
        pair("tokenizer.ggml.model", scalar(STRING, "llama")),
        pair("tokenizer.ggml.tokens", array(STRING, texts)),
        pair("tokenizer.ggml.scores", array(F32, scores)),
        pair("tokenizer.ggml.token_type", array(I32, kinds)),
        pair("tokenizer.ggml.bos_token_id", scalar(U32, 1)),
        pair("tokenizer.ggml.eos_token_id", scalar(U32, 2)),
    ]
    path.write_bytes(image([*keys, *more]))
    return Vocabulary(GGUFFile(path))


def test_sentence_piece_merges_by_score(tmp_path: Path) -> None:
    vocabulary = sentence_piece(tmp_path / "spm.gguf")
    ours = Tokenizer(from_vocabulary(vocabulary), "keys")
    scores = vocabulary.scores.tolist()
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == merged(text, vocabulary.ids, scores), text
        assert ours.decode(ids) == text.replace("▁", " ")
    assert ours.special_prefix() == [1]
    assert ours.special_ids == {0, 1, 2}
    assert ours.encode("</s>", special=True) == [2]


@given(st.text(alphabet="aehlnort ▁\n🐚<s>", max_size=30))
def test_sentence_piece_merges_any_text(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    vocabulary = sentence_piece(tmp_path_factory.getbasetemp() / "spm.gguf")
    ours = Tokenizer(from_vocabulary(vocabulary), "keys")
    assert ours.encode(text) == merged(text, vocabulary.ids, vocabulary.scores.tolist())


def test_a_space_is_put_in_front_unless_the_file_says_no(tmp_path: Path) -> None:
    no = pair("tokenizer.ggml.add_space_prefix", scalar(BOOL, 0))
    plain = Tokenizer(from_vocabulary(sentence_piece(tmp_path / "a.gguf", no)), "keys")
    spaced = Tokenizer(from_vocabulary(sentence_piece(tmp_path / "b.gguf")), "keys")
    assert plain.encode(" once") == spaced.encode("once")
    assert plain.decode(plain.encode(" once")) == " once"


def test_sentence_piece_goes_through_the_keys(tmp_path: Path) -> None:
    raw = from_vocabulary(sentence_piece(tmp_path / "spm.gguf"))
    model = round_trip(tmp_path / "m.gguf", HuggingFace.from_str(raw.decode()), add_bos=True)
    assert model.file.text("tokenizer.ggml.model") == "llama"
    assert (
        json.loads(from_vocabulary(Vocabulary(model.file)))["model"]["merges"]
        == (json.loads(raw)["model"]["merges"])
    )
    theirs, ours = Tokenizer(raw, "original"), from_keys(model)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


# ---- what the keys say of text ------------------------------------------------------------------

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ["<bos>", "<eos>", "<|eot_id|>", "<|im_end|>", *ALPHABET]


def test_tokens_that_end_a_reply_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    as_converter(path, RandomSource(whole_config()), more=tokens(WORDS, [], [0, 1, 2]))
    config = GGUFModel(path).config
    assert config.bos_token_id == 0
    assert config.eos_token_ids == (1, 2)  # <|im_end|> is text here, not a control token


def test_the_official_2b_4t_file_is_mended(tmp_path: Path) -> None:
    """It lacks the name of its pre-tokenizer and has the template of an older model."""
    words = [*ALPHABET, *map(str, range(10_000, 137_744)), "<|begin_of_text|>", "<|end_of_text|>"]
    assert words[128000] == "<|begin_of_text|>"
    words += [f"<|reserved_special_token_{i}|>" for i in range(7)] + ["<|eot_id|>"]
    old = "{% for m in messages %}Human: {{ m.content }}\n\nBITNETAssistant: {% endfor %}"
    path = tmp_path / "m.gguf"
    more = [
        *tokens(words, [], [128000, 128001, 128009]),
        pair("tokenizer.chat_template", scalar(STRING, old)),
    ]
    as_converter(path, RandomSource(whole_config(vocab_size=128256, hidden_size=32)), more=more)
    model = GGUFModel(path)
    assert Vocabulary(model.file).pre == "llama-bpe"
    assert model.config.eos_token_ids == (128001, 128009)
    assert model.text.add_bos
    assert model.text.chat_template is not None
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]
    assert chat_template.render(model.text.chat_template, messages) == (
        "User: hi<|eot_id|>Assistant: yes<|eot_id|>Assistant: "
    )
    assert model.text.tokenizer is not None


def test_the_default_pre_tokenizer_is_llama_cpp_s(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(image(tokens(WORDS, [], [0, 1])))
    vocabulary = Vocabulary(GGUFFile(path))
    assert vocabulary.pre == "default"
    assert not vocabulary.adds_bos


MODEL = pair("tokenizer.ggml.model", scalar(STRING, "gpt2"))
ABC = pair("tokenizer.ggml.tokens", array(STRING, ["a", "b", "ab"]))
NO_MERGES = pair("tokenizer.ggml.merges", array(STRING, []))
DAMAGED: dict[str, tuple[list[bytes], type[Exception], str]] = {
    "no tokens": ([MODEL], FormatError, "without tokens"),
    "tokens that are numbers": (
        [MODEL, pair("tokenizer.ggml.tokens", array(U32, [1]))],
        FormatError,
        "not an array of strings",
    ),
    "a token twice": (
        [MODEL, pair("tokenizer.ggml.tokens", array(STRING, ["a", "b", "a"]))],
        FormatError,
        "the token 'a' is there twice",
    ),
    "a token that is not UTF-8": (
        [MODEL, pair("tokenizer.ggml.tokens", array(STRING, ["a", b"\xff"]))],
        FormatError,
        "item 1 of 'tokenizer.ggml.tokens' is not UTF-8",
    ),
    "types of other tokens": (
        [MODEL, ABC, pair("tokenizer.ggml.token_type", array(I32, [1]))],
        FormatError,
        "'tokenizer.ggml.token_type' does not fit 3 tokens",
    ),
    "types that are floats": (
        [MODEL, ABC, pair("tokenizer.ggml.token_type", array(F32, [1, 1, 1]))],
        FormatError,
        "does not fit 3 tokens",
    ),
    "bos behind the end": (
        [MODEL, ABC, pair("tokenizer.ggml.bos_token_id", scalar(U32, 3))],
        FormatError,
        "'tokenizer.ggml.bos_token_id' is 3, and there are 3 tokens",
    ),
    "no merges": ([MODEL, ABC], FormatError, "without merges"),
    "a merge of nothing": (
        [MODEL, ABC, pair("tokenizer.ggml.merges", array(STRING, ["a b", "b b"]))],
        FormatError,
        "the merge 'b b' makes no token",
    ),
    "a merge of one": (
        [MODEL, ABC, pair("tokenizer.ggml.merges", array(STRING, ["ab"]))],
        FormatError,
        "the merge 'ab' makes no token",
    ),
    "another kind": (
        [pair("tokenizer.ggml.model", scalar(STRING, "t5")), ABC],
        UnsupportedModel,
        "a tokenizer of the kind 't5'; supported: gpt2, llama",
    ),
    "another pre-tokenizer": (
        [MODEL, ABC, NO_MERGES, pair("tokenizer.ggml.pre", scalar(STRING, "kimi-k2"))],
        UnsupportedModel,
        "the pre-tokenizer 'kimi-k2' is not supported; supported: codeshell,",
    ),
    "no scores": (
        [pair("tokenizer.ggml.model", scalar(STRING, "llama")), ABC],
        FormatError,
        "without scores",
    ),
    "a score of NaN": (
        [
            pair("tokenizer.ggml.model", scalar(STRING, "llama")),
            ABC,
            pair("tokenizer.ggml.scores", array(F32, [0.0, float("nan"), 1.0])),
        ],
        FormatError,
        "a token's score is NaN",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_tokenizers_are_refused_by_name(tmp_path: Path, case: str) -> None:
    keys, kind, message = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(image(keys))
    with pytest.raises(kind) as error:
        from_vocabulary(Vocabulary(GGUFFile(path)))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    as_converter(path, RandomSource(whole_config(vocab_size=100)), more=tokens(WORDS, [], [0, 1]))
    with pytest.raises(FormatError, match="has ids up to 259, its vocabulary ends at 99"):
        GGUFModel(path).text  # noqa: B018, reading it is the test


def test_an_end_without_a_tokenizer_is_one_of_the_vocabulary(tmp_path: Path) -> None:
    path, key = tmp_path / "m.gguf", "tokenizer.ggml.eos_token_id"
    source = RandomSource(whole_config(vocab_size=100))
    as_converter(path, source, more=[pair(key, scalar(U32, 99))])
    assert GGUFModel(path).config.eos_token_ids == (99,)
    as_converter(path, source, more=[pair(key, scalar(U32, 100))])
    with pytest.raises(FormatError, match=f"m.gguf: '{key}' is 100, and there are 100 tokens"):
        GGUFModel(path)
