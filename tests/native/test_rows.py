"""Rows of large tables are read from the file: the same text, little memory, one error at worst."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

from trilobit import LLM, Embedder, FormatError, SamplingParams, _native
from trilobit.engine.native import rotary_frequencies
from trilobit.formats.files import OpenFile
from trilobit.formats.packed import reader
from trilobit.formats.packed.reader import PackedModel
from trilobit.model import tensor_names
from trilobit.synth import synth_packed

SAMPLINGS = {
    "greedy": SamplingParams(max_tokens=20, temperature=0, ignore_eos=True),
    "softmax": SamplingParams(max_tokens=20, seed=1, ignore_eos=True),
    "top-k": SamplingParams(max_tokens=20, top_k=20, seed=2, ignore_eos=True),
    "min-p": SamplingParams(max_tokens=20, min_p=0.1, seed=3, ignore_eos=True),
    "top-p": SamplingParams(max_tokens=20, top_p=0.9, seed=4, ignore_eos=True),
    "bias": SamplingParams(max_tokens=20, logit_bias={7: 3.0}, repetition_penalty=1.2, seed=5),
}
PROMPT = list(range(2, 90))


@pytest.fixture
def from_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of any size count as large."""
    monkeypatch.setattr(reader, "_IN_FILE_BYTES", 1)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "model.trilobit"
    synth_packed(tiny_config(tie_word_embeddings=request.param, vocab_size=3001), path, seed=4)
    return path


def test_small_tables_are_read_in_place(model: Path) -> None:
    assert PackedModel(model).row_files() == {}


@pytest.mark.parametrize("head", ["screened", "full"])
def test_the_text_and_the_logits_are_those_of_rows_in_memory(
    model: Path, head: str, request: pytest.FixtureRequest
) -> None:
    memory = LLM(model, head=head, threads=2)  # type: ignore[arg-type]
    request.getfixturevalue("from_file")
    file = LLM(model, head=head, threads=2)  # type: ignore[arg-type]
    assert len(PackedModel(model).row_files()) == len(tensor_names.tables(file.config))
    for name, params in SAMPLINGS.items():
        texts = [llm.generate([PROMPT, PROMPT[5:]], params) for llm in (memory, file)]
        assert [c.token_ids for c in texts[0]] == [c.token_ids for c in texts[1]], name
    assert np.array_equal(memory.logits(PROMPT), file.logits(PROMPT))


def test_vectors_are_those_of_rows_in_memory(
    model_file: Path, request: pytest.FixtureRequest
) -> None:
    texts = ["Once upon a time", "a big dog ran and ran"]
    expected = Embedder(model_file, threads=2).encode(texts)
    request.getfixturevalue("from_file")
    assert np.array_equal(Embedder(model_file, threads=2).encode(texts), expected)


# ---- a file that changes ----------------------------------------------------------------------


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A copy that a test may cut off, where tables end pages behind what is read in place."""
    return Path(shutil.copy(model, tmp_path / "own.trilobit"))


def cut(path: Path) -> bytes:
    """Cut a model off at the rows of its first table, but for the first page; returns the rest."""
    begin = PackedModel(path).file.info(tensor_names.EMBEDDING).begin + os.sysconf("SC_PAGE_SIZE")
    rest = path.read_bytes()[begin:]
    os.truncate(path, begin)
    return rest


def one_line(error: pytest.ExceptionInfo[FormatError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: a row ")
    assert message.isprintable()
    assert "Load it again" in message
    return message


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut off there")
@pytest.mark.usefixtures("from_file")
def test_a_file_cut_off_under_a_running_model_is_one_error(own: Path) -> None:
    llm = LLM(own, head="screened", threads=2)
    params = SAMPLINGS["greedy"]
    before = llm.generate(PROMPT, params)
    rest = cut(own)
    with pytest.raises(FormatError) as error:
        llm.generate([3000], params)
    assert "(it ends too early)" in one_line(error, own)
    with pytest.raises(FormatError) as error:  # all of the head, which is mapped
        llm.logits(PROMPT)
    one_line(error, own)
    stream = llm.stream([2999], params)
    with pytest.raises(FormatError) as error:
        next(stream)
    one_line(error, own)
    with own.open("ab") as file:
        file.write(rest)
    assert llm.generate(PROMPT, params).token_ids == before.token_ids


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be cut off there")
@pytest.mark.usefixtures("from_file")
def test_a_head_that_cannot_be_read_chooses_no_token(own: Path) -> None:
    llm = LLM(own, head="screened", threads=2)
    ids = list(range(8))  # whose embeddings are in the first page
    whole = llm.generate(ids, SAMPLINGS["greedy"])
    cut(own)
    with pytest.raises(FormatError) as error:
        llm.generate(ids, SAMPLINGS["greedy"])
    one_line(error, own)
    assert max(whole.token_ids) > 100, "of rows that are not there any more"


@pytest.mark.usefixtures("from_file")
def test_a_deleted_file_goes_on_being_read(own: Path) -> None:
    llm = LLM(own, head="screened", threads=1)
    before = llm.generate(PROMPT, SAMPLINGS["greedy"])
    own.unlink()
    assert llm.generate(PROMPT[::-1], SAMPLINGS["greedy"]).text == ""  # it has no tokenizer
    assert llm.generate(PROMPT, SAMPLINGS["greedy"]).token_ids == before.token_ids


def test_the_decoder_checks_and_keeps_the_files(model: Path) -> None:
    opened = PackedModel(model)

    def decoder(files: object) -> object:
        frequencies = rotary_frequencies(opened.config)
        config, arrays = opened.config.to_dict(), opened.arrays()
        return _native.Decoder(config, arrays, frequencies, 1, 16, 4, "f16", files)

    with model.open("rb") as file:
        with pytest.raises(ValueError, match="negative"):
            decoder({tensor_names.EMBEDDING: (file, -1)})
        before = sys.getrefcount(file)
        one = decoder({tensor_names.EMBEDDING: (file, 0)})
        assert sys.getrefcount(file) == before + 1
        del one
        assert sys.getrefcount(file) == before


# ---- memory -----------------------------------------------------------------------------------


def mapped_bytes(path: Path) -> int:
    """Resident bytes of this process's mappings of the file."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))  # where a mapping begins
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_a_large_table_is_resident_only_while_all_of_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.trilobit"
    config = tiny_config(vocab_size=130_000, hidden_size=250)
    synth_packed(config, path, seed=1)
    file = PackedModel(path).file
    table = file.info(tensor_names.EMBEDDING).size_bytes
    rest = file.size_bytes - table
    assert table > reader._IN_FILE_BYTES
    llm = LLM(path, threads=2, speculation=False)
    assert llm.head_is_screened
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 400).tolist()
    few = rest + 4_000_000  # what the system maps beyond the end of what is read
    llm.generate(ids, SamplingParams(max_tokens=4, top_k=40, ignore_eos=True, seed=1))
    assert mapped_bytes(path) < few
    stream = llm.stream(ids, SamplingParams(max_tokens=6, top_p=0.9, ignore_eos=True, seed=1))
    llm._worker.run_until(lambda: len(stream.completion.token_ids) > 1)
    assert mapped_bytes(path) > table, "top-p reads all of the head"
    llm.generate(ids[::-1], SAMPLINGS["greedy"])  # beside top-p, then without it
    assert mapped_bytes(path) < few
    llm.score(ids[:3])
    assert mapped_bytes(path) < few


def _share_in_file_cache(file: OpenFile, size: int) -> float:
    """Of a file's pages, those that the system holds in memory (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    pages = ctypes.create_string_buffer(size // mmap.PAGESIZE)
    with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        assert libc.mincore(address, size, pages) == 0, os.strerror(ctypes.get_errno())
    return float(np.mean(np.frombuffer(pages, np.uint8) & 1))


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and posix_fadvise as Linux has them")
def test_a_table_is_fetched_in_the_background(tmp_path: Path) -> None:
    size = 40 << 20
    path = tmp_path / "table"
    path.write_bytes(os.urandom(1 << 20) * 40)
    with open(path, "rb") as raw:
        file = OpenFile(path, raw)
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _share_in_file_cache(file, size) > 0.5:
        pytest.skip("this file system keeps files in memory")
    file.fetch(0, size)
    deadline = time.monotonic() + 60
    while _share_in_file_cache(file, size) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("memory", "fetched"), [(1 << 40, True), (1000, False), (None, False)])
def test_the_tables_whose_rows_are_read_are_fetched_where_the_file_fits_into_memory(
    model: Path, memory: int | None, fetched: bool, from_file: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = set()
    monkeypatch.setattr(OpenFile, "fetch", lambda _, begin, end: ranges.add((begin, end)))
    monkeypatch.setattr(reader, "memory_bytes", lambda: memory)
    config = LLM(model, threads=1).config
    file = PackedModel(model).file
    tables = [file.info(name) for name in tensor_names.float_tables(config)]
    assert ranges == ({(t.begin, t.begin + t.size_bytes) for t in tables} if fetched else set())
