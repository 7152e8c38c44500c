"""What the files beside tokenizer.json say of tokens, beginnings and ends: as transformers has it.

The reference is stock AutoTokenizer over the same directory.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, tiny_config
from program import result, trilobit
from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer as Library
from tokenizers import normalizers, processors
from transformers import AutoTokenizer

from trilobit import LLM, FormatError, SamplingParams, UnsupportedModel
from trilobit.conversion import convert
from trilobit.formats.hf.text import read_text_files, write_text_files
from trilobit.synth import synth

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [{"role": "user", "content": "a dog <|im_end|>"}]
PROBES = [
    TEXT[:60],
    "a<|im_start|>user\nx<|im_end|> y",
    "x <tool> y<|im_end|>",
    "the dogdog <pad><extra>",
    "Once<|im_start|><|im_end|><tool>",
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with room for more tokens, without a tokenizer."""
    directory = tmp_path_factory.mktemp("bare") / "model"
    synth(tiny_config(vocab_size=340), directory, seed=1)
    return directory


@pytest.fixture
def library(tokenizer_json: Path) -> Library:
    """A tokenizer that begins texts with token 0; ids from `get_vocab_size()` on are free."""
    return Library.from_file(str(tokenizer_json))


def folder(bare: Path, tmp_path: Path, library: Library, **files: dict[str, Any] | str) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(bare, directory)
    library.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return directory


def loaded(directory: Path, tmp_path: Path) -> LLM:
    convert(directory, tmp_path / "m.trilobit")
    return LLM(tmp_path / "m.trilobit", threads=1)


def decoder(library: Library, *tokens: LibraryToken) -> dict[str, Any]:
    start = library.get_vocab_size()
    return {str(start + n): token.__getstate__() for n, token in enumerate(tokens)}


START, END = LibraryToken("<|im_start|>", special=True), LibraryToken("<|im_end|>", special=True)
TOOL = LibraryToken("<tool>", special=False, lstrip=True, normalized=False)


def files_of(library: Library) -> dict[str, dict[str, dict[str, Any]]]:
    count = library.get_vocab_size()
    added = decoder(library, START, END, TOOL)
    return {
        "decoder": {"tokenizer_config__json": {"added_tokens_decoder": added}},
        "decoder and names": {
            "tokenizer_config__json": {
                "added_tokens_decoder": added,
                "eos_token": "<|im_end|>",
                "pad_token": "<pad>",
                "image_token": "<extra>",
            }
        },
        "not special by its flags, but by its name": {
            "tokenizer_config__json": {"added_tokens_decoder": added, "sep_token": "<tool>"}
        },
        "names alone": {
            "tokenizer_config__json": {
                "eos_token": "<|im_end|>",
                "pad_token": {"__type": "AddedToken", **LibraryToken("<pad>").__getstate__()},
                "additional_special_tokens": ["<|im_start|>", "<extra>"],
            }
        },
        "extra_special_tokens": {
            "tokenizer_config__json": {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}
        },
        "extra_special_tokens by name": {
            "tokenizer_config__json": {"extra_special_tokens": {"a": "<|im_end|>", "b": "<extra>"}}
        },
        "special_tokens_map": {
            "special_tokens_map__json": {
                "eos_token": {"content": "<|im_end|>", "lstrip": True},
                "additional_special_tokens": ["<|im_start|>", "<extra>"],
            }
        },
        "special_tokens_map beside a decoder does not count": {
            "tokenizer_config__json": {"added_tokens_decoder": added},
            "special_tokens_map__json": {"pad_token": "<pad>"},
        },
        "added_tokens": {
            "added_tokens__json": {
                "<|im_start|>": count,
                "<|im_end|>": count + 1,
                "<tool>": count + 2,
            },
            "special_tokens_map__json": {"eos_token": "<|im_end|>"},
        },
        "a token of the vocabulary": {"tokenizer_config__json": {"eos_token": "he"}},
        "flags of a token that is there": {
            "tokenizer_config__json": {
                "added_tokens_decoder": {
                    "1": LibraryToken(
                        library.id_to_token(1), lstrip=True, special=True
                    ).__getstate__()
                }
            }
        },
    }


CASES = sorted(
    files_of(Library.from_str('{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[]}}'))
)


@pytest.mark.parametrize("case", CASES)
def test_added_tokens_have_the_ids_of_transformers(
    bare: Path, tmp_path: Path, library: Library, case: str
) -> None:
    directory = folder(bare, tmp_path, library, **files_of(library)[case])
    theirs = AutoTokenizer.from_pretrained(directory)
    ours = loaded(directory, tmp_path).tokenizer
    assert ours is not None
    for text in [*PROBES, f"a  {library.id_to_token(1)}  b"]:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == expected, text
    added = theirs.added_tokens_decoder
    assert ours.special_ids == {i for i, token in added.items() if token.special}
    assert {i: ours.token(i) for i in added} == {i: token.content for i, token in added.items()}


def test_a_tokenizer_that_has_its_added_tokens_keeps_its_bytes(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    library.add_special_tokens([START, END])
    ids = [library.token_to_id(token.content) for token in (START, END)]
    added = dict(zip(map(str, ids), (START.__getstate__(), END.__getstate__()), strict=True))
    settings = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "bos_token": "<|bos|>"}
    settings["bos_token"] = library.id_to_token(0)
    directory = folder(bare, tmp_path, library, tokenizer_config__json=settings)
    convert(directory, tmp_path / "m.trilobit")
    convert(tmp_path / "m.trilobit", tmp_path / "hf")
    read = (tmp_path / "hf" / "tokenizer.json").read_bytes()
    assert read == (directory / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("token", "at"), [("<x>", 5), ("<x>", 338), ("he", 339), ("<x>", 10**9)])
def test_an_added_token_whose_id_is_not_its_own_is_refused(
    bare: Path, tmp_path: Path, library: Library, token: str, at: int
) -> None:
    settings = {"added_tokens_decoder": {str(at): {"content": token}}}
    directory = folder(bare, tmp_path, library, tokenizer_config__json=settings)
    with pytest.raises(FormatError, match=f"tokenizer_config.json: .*'{token}' has the id {at}"):
        convert(directory, tmp_path / "m.trilobit")
    assert not (tmp_path / "m.trilobit").exists()


@pytest.mark.parametrize("value", [[], {"9" * 5000: {"content": "x"}}, {"1": "x"}, {"²": {}}, 7])
def test_a_decoder_of_another_form_is_refused(
    bare: Path, tmp_path: Path, library: Library, value: object
) -> None:
    settings = {"added_tokens_decoder": value}
    directory = folder(bare, tmp_path, library, tokenizer_config__json=settings)
    done = trilobit("convert", directory, tmp_path / "m.trilobit")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "added_tokens_decoder is no tokens by id" in done.stderr


def test_a_name_without_room_in_the_model_is_left_out(tmp_path: Path, library: Library) -> None:
    """As of a padding token that was added for training, and that no row of the model has."""
    synth(tiny_config(vocab_size=library.get_vocab_size()), tmp_path / "full", seed=1)
    settings = {"pad_token": "[PAD]", "eos_token": "[PAD]"}
    directory = folder(tmp_path / "full", tmp_path, library, tokenizer_config__json=settings)
    model = loaded(directory, tmp_path)
    assert model.tokenizer is not None
    assert model.tokenizer.token_id("[PAD]") is None
    assert model.config.eos_token_ids == (1,)


# ---- beginnings and ends ------------------------------------------------------------------------


def chat_folder(bare: Path, tmp_path: Path, library: Library, **more: Any) -> Path:
    settings = {
        "added_tokens_decoder": decoder(library, START, END),
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
        **more,
    }
    return folder(bare, tmp_path, library, tokenizer_config__json=settings)


def test_a_chat_ends_where_tokenizer_config_alone_ends_a_turn(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    directory = chat_folder(bare, tmp_path, library)
    model = loaded(directory, tmp_path)
    end = library.get_vocab_size() + 1
    assert model.config.eos_token_ids == (end, 1)  # and config.json's own
    for wanted in (end, 1):
        reply = model.chat(CHAT, SamplingParams(max_tokens=5, logit_bias={wanted: 100.0}))
        assert reply.finish_reason == "stop"
        assert reply.text == ""


def test_info_says_which_file_ends_texts_with_what(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    directory = chat_folder(bare, tmp_path, library)
    end = library.get_vocab_size() + 1
    facts = result("info", directory)
    assert facts["ends"] == {"tokenizer_config.json": [end], "config.json": [1]}
    assert facts["config"]["eos_token_ids"] == [end, 1]
    said = trilobit("info", directory).stdout
    assert (
        f"  ends of texts    {end} (tokenizer_config.json), 1 (config.json): any of them\n" in said
    )


def test_info_names_the_map_of_special_tokens(bare: Path, tmp_path: Path, library: Library) -> None:
    names = {"eos_token": {"content": "<|im_end|>"}}
    directory = folder(bare, tmp_path, library, special_tokens_map__json=names)
    ends = result("info", directory)["ends"]
    assert ends == {"special_tokens_map.json": [library.get_vocab_size()], "config.json": [1]}


def test_a_token_of_the_vocabulary_may_end_texts(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    directory = folder(bare, tmp_path, library, tokenizer_config__json={"eos_token": "he"})
    model = loaded(directory, tmp_path)
    assert model.config.eos_token_ids == (library.token_to_id("he"), 1)


def test_the_template_gets_the_tokenizers_bos_and_eos(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    library.post_processor = None
    directory = chat_folder(
        bare, tmp_path, library, bos_token="<|im_start|>", chat_template=template
    )
    theirs = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "a dog"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert loaded(directory, tmp_path).chat_ids(chat) == expected


@pytest.mark.parametrize("setting", [True, False, None])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_bos_comes_where_transformers_puts_it(
    bare: Path, tmp_path: Path, library: Library, setting: bool | None, adds: bool, named: bool
) -> None:
    if not adds:
        library.post_processor = processors.ByteLevel(trim_offsets=False)
    more: dict[str, Any] = {} if setting is None else {"add_bos_token": setting}
    if named:
        more["bos_token"] = library.id_to_token(0)
    directory = chat_folder(bare, tmp_path, library, **more)
    theirs, ours = AutoTokenizer.from_pretrained(directory), loaded(directory, tmp_path)
    assert ours.encode("a dog") == theirs("a dog")["input_ids"]
    assert (ours.encode("a dog")[0] == 0) is adds
    chat = [{"role": "user", "content": "a dog"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ours.chat_ids(chat) == expected
    assert 0 not in expected


def test_a_chat_without_a_template_begins_as_a_text_does(model_file: Path) -> None:
    model = LLM(model_file, threads=1)
    assert model.chat_ids([{"role": "user", "content": "a dog"}]) == model.encode("a dog")


def test_bitnet_2b_leaves_bos_to_the_tokenizer(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    """Its template writes none, and its card gives the template's text to the tokenizer."""
    template = (
        "{% for message in messages %}{{ message['role'] | capitalize + ': ' "
        "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    )
    directory = chat_folder(bare, tmp_path, library, chat_template=template)
    theirs, ours = AutoTokenizer.from_pretrained(directory), loaded(directory, tmp_path)
    chat = [{"role": "user", "content": "a dog"}]
    text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ours.chat_ids(chat) == theirs(text)["input_ids"]
    assert ours.chat_ids(chat)[0] == 0


def test_a_beginning_that_no_file_names_is_refused(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    library.post_processor = processors.TemplateProcessing(
        single="he:0 $A:0", special_tokens=[("he", library.token_to_id("he"))]
    )
    directory = folder(bare, tmp_path, library)
    with pytest.raises(UnsupportedModel, match=r"begins every text with 'he', and no file names"):
        convert(directory, tmp_path / "m.trilobit")
    settings = {"bos_token": "he"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = AutoTokenizer.from_pretrained(directory)
    assert loaded(directory, tmp_path).encode("a b") == theirs("a b")["input_ids"]


def test_bos_survives_a_hugging_face_directory(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    """Also of a packed file whose tokenizer adds none: as of GGUF, whose keys say it."""
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    directory = folder(bare, tmp_path, library)
    config = tiny_config(vocab_size=340)
    text = read_text_files(directory, config)
    assert not text.add_bos
    for path in directory.glob("tokenizer*"):
        path.unlink()
    write_text_files(directory, replace(text, add_bos=True), config)
    again = read_text_files(directory, config)
    assert again.add_bos
    assert AutoTokenizer.from_pretrained(directory)("a dog")["input_ids"][0] == 0


def test_only_special_tokens_are_named_in_what_is_written(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    """A name would make a token of the vocabulary special when it is read again."""
    directory = folder(bare, tmp_path, library)
    config = tiny_config(vocab_size=340, eos_token_ids=(library.token_to_id("he"), 1))
    text = read_text_files(directory, config)
    for path in directory.glob("tokenizer*"):
        path.unlink()
    write_text_files(directory, text, config)
    assert "eos_token" not in json.loads((directory / "tokenizer_config.json").read_text())
    assert read_text_files(directory, config) == text


def test_a_token_is_found_in_a_text_that_its_tokenizer_puts_a_space_before(
    bare: Path, tmp_path: Path, library: Library
) -> None:
    """Llama's old settings call `<s>` normalized; its normalizer would make `▁<s>` of it."""
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    end = LibraryToken("</s>", special=True, normalized=True)
    settings = {"added_tokens_decoder": decoder(library, end)}
    directory = folder(bare, tmp_path, library, tokenizer_config__json=settings)
    tokenizer = loaded(directory, tmp_path).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("a</s>", special=True)[-1] == library.get_vocab_size()


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        "{}",
        '{"model": 5, "added_tokens": 7}',
        '{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}',
        '{"model": {"type": "Unigram", "vocab": [["a", 0.0], 5]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"id": 1}]}',
        '{"model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}',
        '{"normalizer": ' + '{"a":' * 500 + "1" + "}" * 500 + "}",
        "[" * 100_000,
        "\ufeff{",
    ],
    ids=lambda data: data[:40],
)
def test_a_tokenizer_of_another_form_is_refused_in_one_line(
    bare: Path, tmp_path: Path, library: Library, data: str
) -> None:
    settings = {"eos_token": "</s>", "added_tokens_decoder": {"1": {"content": "<x>"}}}
    directory = folder(
        bare, tmp_path, library, tokenizer_config__json=settings, tokenizer__json=data
    )
    with pytest.raises(FormatError) as refused:
        convert(directory, tmp_path / "m.trilobit")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
