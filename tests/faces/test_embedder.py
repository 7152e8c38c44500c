"""Vectors of texts: those of stock transformers, and the same bits whatever runs beside a text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, tiny_config
from families import has_projection_norms, random_masters, stock_model
from gguf_image import pair, scalar
from gguf_models import RandomSource, tokens, whole_config
from gguf_models import write_gguf as as_converter
from interrupt import interrupt_at
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trilobit import (
    LLM,
    ContextOverflow,
    Embedder,
    FormatError,
    RequestError,
    UnsupportedModel,
    pack_vectors,
    similarity,
)
from trilobit.conversion import convert
from trilobit.formats.gguf.reader import GGUFModel
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.pooling import Pooling
from trilobit.synth import synth

# torch warns about itself when it loads what even an uncompiled torch.compile needs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

MODES_HF = {"last": "lasttoken", "mean": "mean"}
WORDS = TEXT.split()
TEXTS = [
    " ".join(WORDS[n : n + length]) for n, length in ((0, 9), (3, 1), (5, 30), (20, 4), (1, 9))
]


@pytest.fixture(scope="module")
def embedder(model_file: Path) -> Embedder:
    return Embedder(model_file, threads=1)


# ---- against stock transformers ----------------------------------------------------------------

# Some activations lie on a tie of the 8-bit rounding, and float32 sums fall to either side of it:
# `ties.py` accounts for each in logits. One step of 255 in one of 64 inputs of one projection moves
# a vector by some 1e-3; one wrong token, norm or window moves it by a tenth and more.
ONE_TIE = 0.01


@pytest.fixture(scope="module")
def _plain_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["BitNet-embedding-0.6B", "BitNet-embedding-270M"])
def masters(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path
) -> Path:
    """Stock's own checkpoint, with a tokenizer and sentence-transformers' files."""
    directory = random_masters(tmp_path_factory.mktemp("embed") / request.param, request.param)
    assert has_projection_norms(request.param)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    return directory


def stock_vectors(
    directory: Path, texts: list[str], mode: str, end: list[int]
) -> NDArray[np.float32]:
    """Unit vectors as anyone would compute them, one text at a time."""
    model = stock_model(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    vectors = []
    for text in texts:
        ids = [0, *tokenizer.encode(text, add_special_tokens=False).ids, *end]
        with torch.no_grad():
            states = model.model(torch.tensor([ids])).last_hidden_state[0].double()
        pooled = states[-1] if mode == "last" else states.mean(dim=0)
        vectors.append(torch.nn.functional.normalize(pooled, dim=0).float().numpy())
    return np.stack(vectors)


@pytest.mark.usefixtures("_plain_torch")
@pytest.mark.parametrize("mode", ["last", "mean"])
def test_vectors_are_those_of_stock_transformers(masters: Path, tmp_path: Path, mode: str) -> None:
    checkpoint = published(tmp_path / "checkpoint", masters)
    key = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens"}[mode]
    write_json(checkpoint / "1_Pooling" / "config.json", {key: True})
    convert(checkpoint, tmp_path / "model.trilobit")
    texts = [*TEXTS, "dog", "a", "park"]  # the shorter, the rarer are ties
    ours = Embedder(tmp_path / "model.trilobit", kv_dtype="f32", threads=1).encode(texts)
    assert ours.dtype == np.float32
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    stock = stock_vectors(masters, texts, mode, [1])
    off = np.linalg.norm(ours - stock, axis=1)
    assert off.max() < ONE_TIE
    assert (
        np.sort(off)[len(texts) // 2 - 1] < 1e-6
    )  # and where no activation lies on a tie, float32 agrees


def published(directory: Path, masters: Path) -> Path:
    """A checkpoint as Microsoft publishes it: a model without a head, in its own names."""
    shutil.copytree(masters, directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = [
        "Qwen3Model" if config["model_type"] == "qwen3" else "Gemma3TextModel"
    ]
    write_json(directory / "config.json", config)
    write_json(directory / "tokenizer_config.json", {"add_bos_token": True})
    return directory


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_text_has_one_vector(model_file: Path, pooling: Any) -> None:
    texts = [*TEXTS, TEXT * 8, "a"]  # the long one is more than a span of 512 keys
    wanted = None
    for threads, batch in ((1, 1024), (2, 7), (3, 64), (1, 1)):
        embedder = Embedder(model_file, pooling=pooling, threads=threads, max_batch_tokens=batch)
        together = embedder.encode(texts)
        alone = np.concatenate([embedder.encode(text) for text in texts[:4]])
        assert (together[:4] == alone).all()
        assert (embedder.encode(texts[::-1])[::-1] == together).all()
        wanted = together if wanted is None else wanted
        assert (together == wanted).all(), (threads, batch)


def test_the_last_state_is_what_the_logits_come_from(embedder: Embedder, model_file: Path) -> None:
    llm = LLM(model_file, threads=1)
    table = PackedModel(model_file).file.float32("model.embed_tokens.weight").astype(np.float64)
    for text in TEXTS:
        direction = table @ embedder.encode(text)[0]
        logits = llm.logits(llm.encode(text))[-1]
        cosine = direction @ logits / np.linalg.norm(direction) / np.linalg.norm(logits)
        assert cosine > 1 - 1e-6


def test_threads_of_a_program_may_share_an_embedder(embedder: Embedder) -> None:
    wanted = embedder.encode(TEXTS)
    got: list[NDArray[np.float32]] = []
    callers = [
        threading.Thread(target=lambda: got.append(embedder.encode(TEXTS))) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(got) == 4
    assert all((vectors == wanted).all() for vectors in got)


def test_an_interrupted_call_leaves_the_next_one_whole(model_file: Path) -> None:
    embedder = Embedder(model_file, threads=1, max_batch_tokens=16)
    wanted = embedder.encode(TEXTS)
    for line in range(1, 400, 23):
        with pytest.raises(KeyboardInterrupt), interrupt_at(line):
            embedder.encode(TEXTS)
        assert (embedder.encode(TEXTS) == wanted).all()


# ---- options -----------------------------------------------------------------------------------


def test_an_instruction_stands_before_the_text(embedder: Embedder) -> None:
    asked = embedder.encode(["a red ball"], instruction="Find the toy")
    spelt = embedder.encode("Instruct: Find the toy\nQuery: a red ball")
    assert (asked == spelt).all()
    assert not (asked == embedder.encode("a red ball")).all()


def test_dimensions_are_the_first_ones_as_unit_vectors(embedder: Embedder) -> None:
    whole, some = embedder.encode(TEXTS), embedder.encode(TEXTS, dimensions=16)
    assert some.shape == (len(TEXTS), 16)
    cut = whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True)
    assert np.abs(some - cut).max() < 1e-6


def test_precisions_are_the_packed_vectors(embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS, dimensions=50)
    for precision in ("int8", "int4", "int2", "int1"):
        stored = embedder.encode(TEXTS, dimensions=50, precision=precision)  # type: ignore[arg-type]
        assert (stored == pack_vectors(vectors, precision)).all()  # type: ignore[arg-type]
        assert similarity(vectors, stored, precision).argmax(axis=1).tolist() == [  # type: ignore[arg-type]
            *range(len(TEXTS))
        ]


def test_no_texts_have_no_vectors(embedder: Embedder) -> None:
    assert embedder.encode([]).shape == (0, 60)
    assert embedder.encode([], precision="int2", dimensions=10).shape == (0, 3)


def test_texts_that_are_too_long_are_refused_or_cut(model_file: Path) -> None:
    embedder = Embedder(model_file, threads=1, context=12)
    with pytest.raises(
        ContextOverflow, match=r"text 1 \('Once.*'…\) has \d\d+ tokens, the context 12"
    ):
        embedder.encode(["dog", TEXT])
    cut = embedder.encode(["dog", TEXT], truncate=True)
    tokens = embedder.tokenizer.encode(TEXT)[:11]  # and one that begins a text
    assert (cut[1] == embedder.encode(embedder.tokenizer.decode(tokens))[0]).all()


def test_long_texts_are_refused_before_they_are_encoded_or_cut(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(model_file, threads=1, context=12)
    long = TEXT * 1_000
    cut = embedder.encode(["dog", long], truncate=True)
    assert (cut == embedder.encode(["dog", TEXT * 20], truncate=True)).all()
    sizes: list[int] = []
    encode = embedder.tokenizer.encode

    def measured(text: str, *, most_tokens: int | None = None) -> list[int]:
        sizes.append(len(text))
        return encode(text, most_tokens=most_tokens)

    monkeypatch.setattr(embedder.tokenizer, "encode", measured)
    embedder.encode(long, truncate=True)
    assert sizes[0] < len(long) // 10
    monkeypatch.undo()
    with pytest.raises(
        ContextOverflow, match=r"^text 1 \('Once.*bytes, more than 12.*\(truncate\)"
    ):
        embedder.encode(["dog", long])


def test_impossible_requests_are_refused(embedder: Embedder, model_file: Path) -> None:
    for options, message in (
        ({"texts": None}, "expected a text or a list of texts, not NoneType"),
        ({"texts": b"a"}, "expected a text or a list of texts, not bytes"),
        ({"texts": ["a", 3]}, "text 1 is not a text, but int"),
        ({"texts": "a", "dimensions": 61}, "dimensions is 61; expected an integer from 1 to 60"),
        ({"texts": "a", "precision": "int3"}, "precision is 'int3'"),
        ({"texts": "a", "prompt": "query"}, "has no prompt 'query'; it has none"),
        ({"texts": "a", "prompt": "query", "instruction": "b"}, "not both"),
    ):
        with pytest.raises(RequestError, match=message):
            embedder.encode(**options)  # type: ignore[arg-type]
    for options, message in (
        ({"pooling": "cls"}, "pooling is 'cls'; expected 'last' or 'mean'"),
        ({"threads": 0}, "threads is 0"),
        ({"context": 1101}, "context is 1101; expected an integer from 1 to 1100"),
        ({"kv_dtype": "f8"}, "kv_dtype is 'f8'"),
        ({"max_batch_tokens": True}, "max_batch_tokens is True"),
    ):
        with pytest.raises(RequestError, match=message):
            Embedder(model_file, **options)  # type: ignore[arg-type]


def test_an_empty_text_is_refused_where_nothing_stands_for_it(model_file: Path) -> None:
    embedder = Embedder(model_file, threads=1)
    assert embedder.encode(["", "a"]).shape == (2, 60)  # of the token that begins a text
    embedder._begin_ids = []
    with pytest.raises(RequestError, match="text 1 is empty; give at least a word"):
        embedder.encode(["a", ""])


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path / "model.trilobit", seed=2)
    with pytest.raises(RequestError, match="has no tokenizer"):
        Embedder(tmp_path / "model.trilobit")


def test_a_model_that_computes_no_numbers_is_named(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedder, "_pooled", lambda *_: np.array([[1.0] * 60, [np.nan] * 60]))
    with pytest.raises(FormatError, match="vector of text 1 is zero or not a number"):
        embedder.encode(["a", "b"])


def test_an_untied_head_is_not_read(tmp_path: Path, tokenizer_json: Path) -> None:
    """Its bytes may even be gone: what reads them would fail."""
    directory = tmp_path / "untied"
    synth(tiny_config(tie_word_embeddings=False), directory, seed=3)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    convert(directory, tmp_path / "model.trilobit")
    packed = PackedModel(tmp_path / "model.trilobit")
    assert not any(name.startswith("lm_head") for name in packed.arrays(headless=True))
    wanted = Embedder(tmp_path / "model.trilobit", threads=1).encode(TEXTS)
    data = bytearray((tmp_path / "model.trilobit").read_bytes())
    for name in ("lm_head.weight", "lm_head.screen.fine.scales", "lm_head.screen.coarse.codes"):
        info = packed.file.info(name)
        data[info.begin : info.begin + info.size_bytes] = b"\xff" * info.size_bytes
    (tmp_path / "broken.trilobit").write_bytes(data)
    assert (Embedder(tmp_path / "broken.trilobit", threads=1).encode(TEXTS) == wanted).all()


def test_import_brings_neither_engine_nor_torch() -> None:
    program = (
        "import sys, trilobit\n"
        "lazy = {'torch', 'tokenizers', 'trilobit._native', 'trilobit.vectors'}\n"
        "assert not lazy & set(sys.modules)\n"
        "from trilobit import Embedder, similarity\n"
        "assert 'trilobit._native' in sys.modules\n"
        "assert not {'torch', 'transformers', 'trilobit.llm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- what a checkpoint says ----------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path, checkpoint: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "plain"))


def pooling_of(directory: Path) -> Pooling | None:
    out = directory.with_suffix(".trilobit")
    convert(directory, out)
    return PackedModel(out).text.pooling


def test_a_language_model_says_nothing(plain: Path) -> None:
    assert pooling_of(plain) is None
    embedder = Embedder(plain.with_suffix(".trilobit"))
    assert embedder.pooling == Pooling(mode="last", end_ids=())
    assert PackedModel(plain.with_suffix(".trilobit")).has_screen


def test_a_model_without_a_head_takes_its_last_token_an_end_of_text(
    masters: Path, tmp_path: Path
) -> None:
    directory = published(tmp_path / "published", masters)
    assert pooling_of(directory) == Pooling(mode="last", end_ids=(1,))
    # And needs no copy of a head.
    assert not PackedModel(directory.with_suffix(".trilobit")).has_screen


def test_what_the_tokenizer_appends_ends_a_text(plain: Path) -> None:
    path = plain / "tokenizer.json"
    raw = json.loads(path.read_text())
    special = {"SpecialToken": {"id": raw["added_tokens"][1]["content"], "type_id": 0}}
    token = raw["added_tokens"][1]
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, special],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token["content"]: {
                "id": token["content"],
                "ids": [token["id"]],
                "tokens": [token["content"]],
            }
        },
    }
    path.write_text(json.dumps(raw))
    write_json(plain / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    assert pooling_of(plain) == Pooling(mode="last", end_ids=(1,))
    # A text that spells the token is text.
    embedder = Embedder(plain.with_suffix(".trilobit"))
    assert not (embedder.encode("a") == embedder.encode(f"a{token['content']}")).all()
    assert embedder._ids(0, f"a{token['content']}", "", truncate=False).count(1) == 1


def test_prompts_are_kept_and_used(plain: Path) -> None:
    prompts = {"query": "Find: ", "document": "", "frage": "Suche mir: ä "}
    write_json(
        plain / "modules.json",
        [
            {"idx": 0, "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            {"idx": 2, "type": "sentence_transformers.models.Normalize"},
        ],
    )
    write_json(
        plain / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": "query"},
    )
    write_json(
        plain / "1_Pooling" / "config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True},
    )
    assert pooling_of(plain) == Pooling(mode="mean", prompts=prompts, default_prompt="query")
    embedder = Embedder(plain.with_suffix(".trilobit"))
    assert (
        embedder.encode("dog", prompt="frage")
        == embedder.encode("Suche mir: ä dog", prompt="document")
    ).all()
    assert (embedder.encode("dog") == embedder.encode("Find: dog", prompt="document")).all()
    with pytest.raises(RequestError, match="no prompt 'q'; it has query, document, frage"):
        embedder.encode("dog", prompt="q")


def test_pooling_survives_a_hugging_face_directory(plain: Path, tmp_path: Path) -> None:
    write_json(plain / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    write_json(plain / "config_sentence_transformers.json", {"prompts": {"query": "Find: "}})
    write_json(plain / "tokenizer_config.json", {"add_eos_token": True})
    convert(plain, tmp_path / "a.trilobit")
    assert PackedModel(tmp_path / "a.trilobit").text.pooling == Pooling(
        mode="mean", end_ids=(1,), prompts={"query": "Find: "}
    )
    convert(tmp_path / "a.trilobit", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "b.trilobit")
    assert (tmp_path / "a.trilobit").read_bytes() == (tmp_path / "b.trilobit").read_bytes()


@pytest.mark.parametrize("mode", ["last", "mean"])
def test_pooling_survives_gguf_but_for_prompts(
    tmp_path: Path, tokenizer_json: Path, mode: Any
) -> None:
    synth(whole_config(), tmp_path / "whole", seed=4)
    (tmp_path / "whole" / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    write_json(tmp_path / "whole" / "1_Pooling" / "config.json", {"pooling_mode": MODES_HF[mode]})
    write_json(tmp_path / "whole" / "tokenizer_config.json", {"add_eos_token": True})
    convert(tmp_path / "whole", tmp_path / "a.trilobit")
    convert(tmp_path / "whole", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "b.trilobit")
    assert PackedModel(tmp_path / "b.trilobit").text.pooling == Pooling(mode=mode, end_ids=(1,))
    vectors = [Embedder(tmp_path / f"{name}.trilobit", threads=1).encode(TEXTS) for name in "ab"]
    assert (vectors[0] == vectors[1]).all()


def test_other_pooling_of_gguf_is_refused(tmp_path: Path, tokenizer_json: Path) -> None:
    source = RandomSource(whole_config())
    words = [f"w{n}" for n in range(source.config.vocab_size)]
    for number, wanted in ((0, None), (1, Pooling(mode="mean")), (3, Pooling(mode="last"))):
        more = [*tokens(words, [], [0, 1]), pair("bitnet-b1.58.pooling_type", scalar(4, number))]
        as_converter(tmp_path / "m.gguf", source, more=more)
        assert GGUFModel(tmp_path / "m.gguf").text.pooling == wanted
    more[-1] = pair("bitnet-b1.58.pooling_type", scalar(4, 2))
    as_converter(tmp_path / "m.gguf", source, more=more)
    with pytest.raises(UnsupportedModel, match="pooling_type is 2; Trilobit pools by 1"):
        _ = GGUFModel(tmp_path / "m.gguf").text


REFUSED: dict[str, tuple[str, object, type[Exception], str]] = {
    "another pooling": (
        "1_Pooling/config.json",
        {"pooling_mode_cls_token": True},
        UnsupportedModel,
        "pools by pooling_mode_cls_token; Trilobit pools by pooling_mode_lasttoken or",
    ),
    "two at once": (
        "1_Pooling/config.json",
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True},
        UnsupportedModel,
        "pools by pooling_mode_lasttoken, pooling_mode_mean_tokens",
    ),
    "none": ("1_Pooling/config.json", {}, UnsupportedModel, "pools by nothing"),
    "a prompt left out": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        UnsupportedModel,
        "leaves out the prompt",
    ),
    "a dense layer": (
        "modules.json",
        [{"type": "sentence_transformers.models.Dense"}],
        UnsupportedModel,
        "a module 'Dense' after the model",
    ),
    "no modules": ("modules.json", {"type": 1}, FormatError, "not a list of modules"),
    "numbers for prompts": (
        "config_sentence_transformers.json",
        {"prompts": {"query": 1}},
        FormatError,
        "prompts are no texts by name",
    ),
    "an unknown default": (
        "config_sentence_transformers.json",
        {"prompts": {}, "default_prompt_name": "query"},
        FormatError,
        "prompts are no texts by name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused(plain: Path, case: str) -> None:
    name, value, error, message = REFUSED[case]
    write_json(plain / name, value)
    with pytest.raises(error, match=message):
        pooling_of(plain)
    assert not plain.with_suffix(".trilobit").exists()


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "[]",
        "{}",
        '{"mode": "cls", "end_ids": []}',
        '{"mode": "last", "end_ids": [331]}',
        '{"mode": "last", "end_ids": [true]}',
        '{"mode": "last", "end_ids": "1"}',
        '{"mode": "last", "end_ids": [], "prompts": []}',
        '{"mode": "last", "end_ids": [], "default_prompt": "query"}',
        '{"mode": "last", "end_ids": [], "unknown": 1}',
        "[" * 100_000,
    ],
)
def test_damaged_metadata_are_refused_in_one_line(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from trilobit.formats import safetensors

    original = safetensors.SafetensorsFile.__init__

    def with_pooling(self: safetensors.SafetensorsFile, path: Path) -> None:
        original(self, path)
        self.metadata = {**self.metadata, "pooling": text}

    monkeypatch.setattr(safetensors.SafetensorsFile, "__init__", with_pooling)
    with pytest.raises(FormatError, match=r"metadata.*; convert the model again") as raised:
        PackedModel(model_file)
    assert str(model_file) in str(raised.value)
    assert "\n" not in str(raised.value)
