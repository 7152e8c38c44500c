"""Keys and values on disk: the same text as without, whatever became of the files meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config

from trilobit import LLM, AsyncLLM, RequestError, SamplingParams
from trilobit.conversion import convert
from trilobit.engine.blocks import BLOCK, ROOT, keys_of
from trilobit.prefix_cache import PrefixCache
from trilobit.synth import synth

PROMPT = [1 + (7 * n) % 90 for n in range(4 * BLOCK + 5)]  # four full blocks
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def answer(model: Path, folder: Path | None, **options: Any) -> tuple[tuple[int, ...], int]:
    """What follows the prompt, and how much of that was in a cache, by a new engine."""
    with LLM(model, threads=1, prefix_cache=folder, **options) as llm:
        done = llm.generate(PROMPT, GREEDY)
    return done.token_ids, done.cached_tokens


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "i8"])
def test_a_text_after_a_restart_is_the_text_without_a_cache(
    model_file: Path, folder: Path, kv_dtype: Any
) -> None:
    wanted, _ = answer(model_file, None, kv_dtype=kv_dtype)
    assert answer(model_file, folder, kv_dtype=kv_dtype) == (wanted, 0)
    assert answer(model_file, folder, kv_dtype=kv_dtype) == (wanted, 4 * BLOCK)
    with LLM(model_file, threads=1, prefix_cache=folder, kv_dtype=kv_dtype) as llm:
        scores = llm.score(PROMPT + list(wanted), first=len(PROMPT))
        with LLM(model_file, threads=1, kv_dtype=kv_dtype) as plain:
            computed = plain.score(PROMPT + list(wanted), first=len(PROMPT))
        assert scores.logprobs.tolist() == computed.logprobs.tolist()


def test_what_was_written_by_the_model_is_kept_too(model_file: Path, folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=3 * BLOCK, ignore_eos=True)
    with LLM(model_file, threads=1, prefix_cache=folder) as llm:
        said = llm.generate(PROMPT, params).token_ids
    with LLM(model_file, threads=1, prefix_cache=folder) as llm:
        again = llm.generate(PROMPT + list(said) + [5], GREEDY)
    assert again.cached_tokens == (len(PROMPT) + len(said) - 1) // BLOCK * BLOCK


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _flip(at: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return change


def _link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _other_block(path: Path) -> None:
    others = [one for one in path.parent.iterdir() if one != path]
    path.write_bytes(others[0].read_bytes())


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are made otherwise")
@pytest.mark.parametrize(
    "harm",
    [
        _cut,
        _empty,
        _longer,
        _flip(0),
        _flip(9),
        _flip(60),
        _flip(-1),
        _link,
        _pipe,
        _folder,
        _other_block,
    ],
)
def test_a_file_that_is_not_what_it_should_be_changes_no_text(
    model_file: Path, folder: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    wanted, _ = answer(model_file, folder)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    third = list(keys_of(ROOT, PROMPT))[2].hex()
    [path] = [path for path in whole if third in path.name]
    harm(path)
    with caplog.at_level(logging.WARNING, "trilobit"):
        assert answer(model_file, folder) == (wanted, 2 * BLOCK)
    [told] = caplog.messages
    assert path.name in told
    if harm is not _folder:  # what was wrong is gone, and written anew
        assert path.read_bytes() == whole[path]
        assert answer(model_file, folder) == (wanted, 4 * BLOCK)


def test_models_and_kv_dtypes_share_a_folder_and_no_block(
    model_file: Path, tmp_path: Path, folder: Path
) -> None:
    synth(tiny_config(), tmp_path / "other", seed=9)
    other = tmp_path / "other.trilobit"
    convert(tmp_path / "other", other)
    asked: list[tuple[Path, Any]] = [(model_file, "f16"), (model_file, "i8"), (other, "f16")]
    wanted = [answer(model, None, kv_dtype=kv_dtype)[0] for model, kv_dtype in asked]
    for cached in (0, 4 * BLOCK):
        for (model, kv_dtype), said in zip(asked, wanted, strict=True):
            assert answer(model, folder, kv_dtype=kv_dtype) == (said, cached)
    # A file under another's name is none of its: the name is part of what is summed.
    begins = sorted({path.name.partition("-")[0] for path in folder.iterdir()})
    assert len(begins) == 3
    for path in sorted(folder.iterdir()):
        begin, _, rest = path.name.partition("-")
        data = path.read_bytes()
        for name in begins:
            if name != begin:
                (tmp_path / "mixed").mkdir(mode=0o700, exist_ok=True)
                (tmp_path / "mixed" / f"{name}-{rest}").write_bytes(data)
    for (model, kv_dtype), said in zip(asked, wanted, strict=True):
        assert answer(model, tmp_path / "mixed", kv_dtype=kv_dtype) == (said, 0)


def test_salted_prompts_find_only_their_own(model_file: Path, folder: Path) -> None:
    async def cached(salt: str | None) -> int:
        llm = await asyncio.to_thread(AsyncLLM, model_file, threads=1, prefix_cache=folder)
        async with llm:
            [stream] = llm.stream_choices(PROMPT, 1, GREEDY, cache_salt=salt)
            async for _ in stream:
                pass
            return stream.completion.cached_tokens

    assert [asyncio.run(cached(salt)) for salt in ("a", None, "b", "a")] == [0, 0, 0, 4 * BLOCK]


def test_several_processes_share_a_folder(model_file: Path, folder: Path) -> None:
    wanted, _ = answer(model_file, None)
    program = (
        "import sys; from trilobit import LLM, SamplingParams\n"
        f"llm = LLM(sys.argv[1], threads=1, prefix_cache=sys.argv[2])\n"
        f"params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)\n"
        f"print(*llm.generate({PROMPT}, params).token_ids)"  # nothing is closed
    )
    command = [sys.executable, "-c", program, str(model_file), str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert tuple(map(int, out.split())) == wanted
    assert answer(model_file, folder) == (wanted, 4 * BLOCK)
    assert not list(folder.glob(".*"))


def made(folder: Path, limit_bytes: int, block_bytes: int = 1000) -> PrefixCache:
    return PrefixCache(
        folder,
        limit_bytes=limit_bytes,
        fingerprint="0" * 16,
        block_bytes=block_bytes,
        read=lambda block: bytes([block % 256]) * block_bytes,
        write=lambda block, data: None,
    )


def test_the_folder_keeps_to_its_limit_and_the_longest_unused_goes(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "mine.txt").write_text("not of the cache")
    os.utime(folder / "mine.txt", (0, 0))
    texts = [[text] * (10 * BLOCK) for text in range(12)]
    for text in texts:
        cache = made(folder, 60_000)
        for number, key in enumerate(keys_of(ROOT, text)):
            cache.keep(key, number)
        cache.used(ROOT, text)
        cache.used(ROOT, texts[0])
        cache.close()
        sizes = [path.stat().st_size for path in folder.glob("*.kv")]
        assert sum(sizes) <= 60_000
    cache = made(folder, 60_000)
    here = [[cache.load(key, 0) for key in keys_of(ROOT, text)] for text in texts]
    cache.close()
    assert all(here[0])  # used all the time
    assert all(here[-1])
    assert not any(map(any, here[1:6]))
    for blocks in here:  # of a text that is partly gone, the end went first
        assert blocks == sorted(blocks, reverse=True)
    assert (folder / "mine.txt").exists()


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    name = f"{'0' * 16}-{'1' * 32}.kv"
    part = folder / f".{name}.99999999.part"
    part.write_bytes(b"half")
    made(folder, 60_000).close()
    assert not part.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_a_folder_that_others_may_write_in_is_refused(model_file: Path, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(RequestError, match="others may write there"):
        LLM(model_file, threads=1, prefix_cache=folder)
    file = folder / "file"
    file.write_bytes(b"")
    with pytest.raises(RequestError, match="no folder can be there"):
        LLM(model_file, threads=1, prefix_cache=file)


def test_options_that_make_no_sense_are_refused(model_file: Path, folder: Path) -> None:
    for options in ({"prefix_cache": 3}, {"prefix_cache": folder, "prefix_cache_gb": 0}):
        with pytest.raises(RequestError, match="prefix_cache"):
            LLM(model_file, **options)
    assert not folder.exists()
