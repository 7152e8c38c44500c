"""Checkpoints without a tokenizer.json: SentencePiece's tokenizer.model, or vocab.json and merges.

The references are SentencePiece's BPE as it is defined (test_gguf_tokenizer.py) and stock
transformers, which reads vocab.json and merges.txt itself.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from program import result, trilobit
from sentence_pieces import TEXTS, merged, pieces
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from trilobit import LLM, FormatError, SamplingParams, TrilobitError, UnsupportedModel
from trilobit.conversion import convert
from trilobit.formats.hf.sentence_piece import read_pieces
from trilobit.synth import synth

NAMES, SCORES, KINDS = pieces()
ADDED = {"</line>": len(NAMES), "<pad>": len(NAMES) + 1}  # as in 1bitLLM's checkpoints
SETTINGS = {"tokenizer_class": "BitnetTokenizer", "pad_token": "<pad>", "bos_token": "<s>"}


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protocol buffer's message."""
    stored = b""
    for number, value in fields:
        if isinstance(value, float):
            stored += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            stored += varint(number << 3) + varint(value)
        else:
            stored += varint(number << 3 | 2) + varint(len(value)) + value
    return stored


def sentence_piece(
    trainer: dict[int, Any] | None = None, normalizer: dict[int, Any] | None = None
) -> bytes:
    """A tokenizer.model with `pieces()`, and fields that we do not read."""
    stored = [
        # NORMAL is the default and not written.
        message((1, name.encode()), (2, score), *([(3, kind)] if kind != 1 else []))
        for name, score, kind in zip(NAMES, SCORES, KINDS, strict=True)
    ]
    trainer_fields = {1: b"corpus.txt", 3: 2, 4: 500, 10: 0.9995, 35: 1, **(trainer or {})}
    normalizer_fields = {1: b"identity", 2: b"", 3: 1, 4: 0, **(normalizer or {})}
    return message(
        *((1, one) for one in stored),
        (2, message(*trainer_fields.items())),
        (3, message(*normalizer_fields.items())),
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a tokenizer."""
    directory = tmp_path_factory.mktemp("bare") / "model"
    vocabulary = len(NAMES) + len(ADDED)
    config = tiny_config(vocab_size=max(vocabulary, 700), bos_token_id=1, eos_token_ids=(2,))
    synth(config, directory, seed=1)
    for path in directory.iterdir():
        assert "token" not in path.name
    return directory


def with_files(bare: Path, tmp_path: Path, **files: bytes | dict[str, Any]) -> Path:
    directory = tmp_path / "with tokenizer"
    directory.mkdir()
    for path in bare.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / name.replace("__", ".")).write_bytes(data)
    return directory


def loaded(directory: Path, tmp_path: Path) -> LLM:
    convert(directory, tmp_path / "m.trilobit")
    return LLM(tmp_path / "m.trilobit")


def test_a_sentencepiece_model_is_read_with_what_was_added_to_it(
    bare: Path, tmp_path: Path
) -> None:
    directory = with_files(
        bare,
        tmp_path,
        tokenizer__model=sentence_piece(),
        added_tokens__json=ADDED,
        tokenizer_config__json=SETTINGS,
    )
    model = loaded(directory, tmp_path)
    ids = {name: i for i, name in enumerate(NAMES)}
    for text in TEXTS:
        found = model.tokenizer.encode(text)
        assert found == merged(text, ids, SCORES), text
        assert model.tokenizer.decode(found) == text.replace("▁", " ")
    assert model.tokenizer.encode("a</line>", special=True)[-1] == ADDED["</line>"]
    assert model.tokenizer.special_ids == {0, 1, 2, ADDED["<pad>"]}
    assert model.tokenizer.special_prefix() == [1]
    # BOS is put in front: the same text from ids.
    prompt = [1, *model.tokenizer.encode(TEXT[:40])]
    params = SamplingParams(max_tokens=4, temperature=0)
    assert model.generate(TEXT[:40], params).text == model.generate(prompt, params).text


def test_info_knows_the_tokenizer_of_an_older_checkpoint(bare: Path, tmp_path: Path) -> None:
    assert result("info", bare)["tokenizer"] is False
    directory = with_files(bare, tmp_path, tokenizer__model=sentence_piece())
    assert result("info", directory)["tokenizer"] is True
    (directory / "tokenizer.model").rename(directory / "vocab.json")
    assert result("info", directory)["tokenizer"] is False  # without merges.txt


def test_no_bos_and_no_space_where_the_settings_say_so(bare: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "add_bos_token": False, "add_prefix_space": False}
    files = {"tokenizer__model": sentence_piece(), "tokenizer_config__json": settings}
    model = loaded(with_files(bare, tmp_path, **files), tmp_path)
    assert model.tokenizer.special_prefix() == []
    ids = {name: i for i, name in enumerate(NAMES)}
    assert model.tokenizer.encode(" once") == merged("once", ids, SCORES)


def library(tmp_path: Path) -> dict[str, bytes]:
    """vocab.json and merges.txt of byte-level BPE; the last token has the greatest id."""
    made = Library(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS * 2, trainer)
    folder = tmp_path / "trained"
    folder.mkdir()
    made.model.save(str(folder))
    merges = (folder / "merges.txt").read_bytes()
    return {"vocab__json": (folder / "vocab.json").read_bytes(), "merges__txt": merges}


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocab_and_merges_give_the_ids_of_transformers(
    bare: Path, tmp_path: Path, kind: str
) -> None:
    files = library(tmp_path)
    count = len(json.loads(files["vocab__json"]))
    settings = {
        "tokenizer_class": kind,
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
        "added_tokens_decoder": {
            str(count): {"content": "<|endoftext|>", "special": True},
            str(count + 1): {"content": "<tool_call>", "special": False},
        },
    }
    directory = with_files(bare, tmp_path, tokenizer_config__json=settings, **files)
    ours, theirs = loaded(directory, tmp_path).tokenizer, AutoTokenizer.from_pretrained(directory)
    for text in [*TEXTS, "a<tool_call>b", "x<|endoftext|>y"]:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == expected, text
    assert ours.special_ids == {count}
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_a_token_of_vocab_json_is_special_where_it_is_named(bare: Path, tmp_path: Path) -> None:
    files = library(tmp_path)
    vocabulary = json.loads(files["vocab__json"])
    vocabulary["<|endoftext|>"] = len(vocabulary)
    files["vocab__json"] = json.dumps(vocabulary).encode()
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    directory = with_files(bare, tmp_path, tokenizer_config__json=settings, **files)
    model, theirs = loaded(directory, tmp_path), AutoTokenizer.from_pretrained(directory)
    expected = theirs("x<|endoftext|>y", add_special_tokens=False)["input_ids"]
    assert model.tokenizer.encode("x<|endoftext|>y", special=True) == expected
    assert model.tokenizer.special_ids == {vocabulary["<|endoftext|>"]}
    assert model.config.eos_token_ids == (vocabulary["<|endoftext|>"], 2)


REFUSED: dict[str, tuple[type[TrilobitError], dict[str, Any], str]] = {
    "unigram": (
        UnsupportedModel,
        {"tokenizer__model": sentence_piece(trainer={3: 1})},
        "tokenizer.model: a SentencePiece model of another kind than BPE; make a tokenizer.json",
    ),
    "normalised": (
        UnsupportedModel,
        {"tokenizer__model": sentence_piece(normalizer={2: b"\1\2"})},
        "tokenizer.model: a SentencePiece model that changes text before it is split; make",
    ),
    "spaces are squeezed": (
        UnsupportedModel,
        {"tokenizer__model": sentence_piece(normalizer={4: 1})},
        "that changes text before it is split",
    ),
    "tiktoken": (
        UnsupportedModel,
        {"tokenizer__model": b"IQ== 0\nIg== 1\n"},
        "tokenizer.model: ranks of tiktoken, which do not split text; make a tokenizer.json",
    ),
    "cut": (
        FormatError,
        {"tokenizer__model": sentence_piece()[:-7]},
        "tokenizer.model: not a SentencePiece model; download it again",
    ),
    "empty": (FormatError, {"tokenizer__model": b""}, "not a SentencePiece model"),
    "NaN": (
        FormatError,
        {"tokenizer__model": message((1, message((1, b"a"), (2, float("nan")))))},
        "not a SentencePiece model",
    ),
    "an id that is taken": (
        FormatError,
        {"tokenizer__model": sentence_piece(), "added_tokens__json": {"<pad>": 7}},
        "the added token '<pad>' has the id 7, which is not its own",
    ),
    "a hole before an id": (
        FormatError,
        {"tokenizer__model": sentence_piece(), "added_tokens__json": {"<pad>": 690}},
        "the added token '<pad>' has the id 690, which is not its own",
    ),
    "no ids": (
        FormatError,
        {"tokenizer__model": sentence_piece(), "added_tokens__json": {"<pad>": "x"}},
        "added_tokens.json: ids are no numbers",
    ),
    "no tokens by id": (
        FormatError,
        {
            "tokenizer__model": sentence_piece(),
            "tokenizer_config__json": {"added_tokens_decoder": {"1": "<s>"}},
        },
        "tokenizer_config.json: added_tokens_decoder is no tokens by id",
    ),
    "an unknown class": (
        UnsupportedModel,
        {"vocab__json": {"a": 0}, "merges__txt": b""},
        "vocab.json: nothing tells how a tokenizer of the class None splits text; make a",
    ),
    "ids with a hole": (
        FormatError,
        {
            "vocab__json": {"a": 0, "b": 2},
            "merges__txt": b"",
            "tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer"},
        },
        "vocab.json: not every id has a token",
    ),
    "an id that is a text": (
        FormatError,
        {
            "vocab__json": {"a": 0, "b": 2, "c": [1]},
            "merges__txt": b"",
            "tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer"},
        },
        "vocab.json: not every id has a token",
    ),
    "a merge of three": (
        FormatError,
        {
            "vocab__json": {"a": 0},
            "merges__txt": b"#version: 0.2\na a a\n",
            "tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer"},
        },
        "merges.txt: a line is no pair of tokens",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_kinds_and_damaged_files_are_refused_in_one_line(
    bare: Path, tmp_path: Path, case: str
) -> None:
    kind, files, reason = REFUSED[case]
    directory = with_files(bare, tmp_path, **files)
    with pytest.raises(kind) as refused:
        convert(directory, tmp_path / "m.trilobit")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m.trilobit").exists()


def test_the_command_line_refuses_in_one_line(bare: Path, tmp_path: Path) -> None:
    directory = with_files(bare, tmp_path, tokenizer__model=b"IQ== 0\n")
    done = trilobit("convert", directory, tmp_path / "m.trilobit")
    assert done.returncode == 2
    assert "tokenizer.model: ranks of tiktoken" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "save_pretrained" in done.stderr


@given(st.binary(max_size=80), st.integers(0, 20000), st.integers(0, 3))
def test_any_bytes_are_pieces_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, cut: int
) -> None:
    whole = sentence_piece()
    at %= len(whole)
    path = tmp_path_factory.getbasetemp() / "mutated.model"
    path.write_bytes(junk if cut == 0 else whole[:at] + junk + whole[at + cut * len(junk) :])
    try:
        found = read_pieces(path)
    except (FormatError, UnsupportedModel):
        return
    assert len(found.texts) == len(found.scores) == len(found.types) > 0
