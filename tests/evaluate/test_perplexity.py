"""Perplexity as others measure it: of the same tokens, in the same windows."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from click.testing import CliRunner

from trilobit import LLM, RequestError, TrilobitError
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.cli.perplexity import command
from trilobit.conversion import convert
from trilobit.evaluate.perplexity import Perplexity, perplexity

THINGS = "dog cat ball house tree bird boat cake car hat bear girl boy fish frog king moon".split()
SIZES = "big small red blue happy sad old new lost".split()
TEXT = " ".join(f"The {thing} was {size}." for size in SIZES for thing in 2 * THINGS)
STORIES = ["Once upon a time there was a bird.", "Tom had a café 😀.\n\nHe liked it.", "The end."]


@pytest.fixture(scope="module")
def bundled() -> Path:
    path = bundled_models().get(DEFAULT)
    if path is None:
        pytest.skip("no bundled model in this installation")
    return path


@pytest.fixture(scope="module")
def llm(bundled: Path) -> LLM:
    return LLM(bundled, threads=1, kv_dtype="f32")


@pytest.fixture(scope="module")
def losses(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Stock's negative log-likelihoods of tokens 1... of ids."""
    directory = tmp_path_factory.mktemp("stock") / "stories"
    convert(bundled, directory)
    reference = stock.load(directory)

    def of(ids: list[int]) -> torch.Tensor:
        logits = stock.logits(reference, torch.tensor([ids]))[0, :-1].double()
        return -torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]

    return of


def test_llama_cpp_scores_the_second_halves_of_windows(llm: LLM, losses: Any) -> None:
    found = perplexity(llm, [TEXT])
    begin, ids = llm.encode(""), llm.encode(TEXT)
    count = len(ids) // 512
    assert count >= 2
    windows = [[*begin, *ids[at + len(begin) : at + 512]] for at in range(0, 512 * count, 512)]
    loss = torch.cat([losses(window)[256:] for window in windows])
    # A rounding tie moves one token's loss by some 1e-2, of more than 500.
    assert found.by_token == pytest.approx(math.exp(loss.mean()), rel=1e-3)
    assert (found.windows, found.tokens, found.documents) == (count, 255 * count, 1)
    assert found.standard_error == pytest.approx(
        found.by_token * float(loss.std()) / math.sqrt(len(loss)), rel=1e-2
    )
    assert found.bits_per_byte is None
    assert found.by_word is None


@pytest.mark.parametrize("stride", [100, 400, 511])
def test_sliding_scores_every_token_once_behind_a_window(
    llm: LLM, losses: Any, stride: int
) -> None:
    found = perplexity(llm, [TEXT], mode="sliding", stride=stride)
    ids = llm.encode(TEXT)
    loss, first = [], 1
    for at in range(0, len(ids), stride):
        end = min(at + 512, len(ids))
        loss.append(losses(ids[at:end])[first - at - 1 :])
        if end == len(ids):
            break
        first = end
    total = float(torch.cat(loss).sum())
    assert found.tokens == len(ids) - 1
    assert found.nats == pytest.approx(total, rel=1e-3)
    assert found.bytes == len(TEXT.encode())
    assert found.words == len(TEXT.split())
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / len(TEXT), rel=1e-3)
    assert found.by_word == pytest.approx(math.exp(total / len(TEXT.split())), rel=1e-2)


def test_documents_are_scored_each_by_itself(llm: LLM, losses: Any) -> None:
    found = perplexity(llm, STORIES, mode="document")
    total = sum(float(losses(llm.encode(story)).sum()) for story in STORIES)
    assert found.nats == pytest.approx(total, rel=1e-3)
    assert found.tokens == sum(len(llm.encode(story)) - 1 for story in STORIES)
    assert found.bytes == sum(len(story.encode()) for story in STORIES)
    assert found.documents == found.windows == 3


def test_batches_and_the_cache_change_no_bit(llm: LLM) -> None:
    alone = [llm.score(story).logprobs for story in STORIES]
    for again, one in zip(llm.score(STORIES), alone, strict=True):
        assert np.array_equal(again.logprobs, one)
    ids = llm.encode(TEXT)[:300]
    whole = llm.score(ids)
    for first in (1, 32, 33, 64, 65, 299, 300):  # at the edges of cached blocks
        part = llm.score(ids, first=first)
        assert part.first == first
        assert np.array_equal(part.logprobs, whole.logprobs[first - 1 :])
        assert np.array_equal(part.likeliest, whole.likeliest[first - 1 :])
    logits = llm.logits(ids)
    assert np.array_equal(whole.likeliest, logits[:-1].argmax(axis=1) == ids[1:])


@pytest.mark.parametrize("first", [0, -1, 4, True, 1.0, "1"])
def test_an_impossible_first_is_refused(llm: LLM, first: Any) -> None:
    with pytest.raises(RequestError, match=r"give 1 to 3|for 1 texts|give a number"):
        llm.score([1, 2, 3], first=first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window is 1; expected 2 to"),
        ({"window": 10**9}, "expected 2 to 512, the context"),
        ({"stride": 5}, "have no stride"),
        ({"mode": "sliding", "stride": 512}, "stride is 512; expected 1 to 511"),
        ({"mode": "sliding", "stride": 0}, "stride is 0"),
        ({"mode": "wiki"}, "mode is 'wiki'"),
    ],
)
def test_impossible_windows_are_refused(llm: LLM, options: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        perplexity(llm, [TEXT], **options)


def test_a_text_that_fills_no_window_is_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="less than 512 tokens; give a longer one"):
        perplexity(llm, ["Once upon a time"])
    for mode in ("sliding", "document"):
        with pytest.raises(RequestError, match="less than 2 tokens"):
            perplexity(llm, [], mode=mode)  # type: ignore[arg-type]


def test_sums_of_no_and_of_huge_numbers() -> None:
    found = Perplexity(mode="document", window=2, stride=1, words=0, bytes=0)
    assert math.isnan(found.by_token)
    assert math.isnan(found.standard_error)
    found.add(np.array([-1e30, -1.0], dtype=np.float32))
    assert found.by_token == math.inf
    with pytest.raises(RequestError, match="logits that are no numbers"):
        found.add(np.array([np.nan], dtype=np.float32))


def run(*arguments: object) -> str:
    done = CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_command_reads_text_json_lines_and_xz(tmp_path: Path, bundled: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.raw.xz").write_bytes(lzma.compress(TEXT.encode()))
    records = "".join(json.dumps({"text": story}) + "\n" for story in STORIES)
    (tmp_path / "b.jsonl.xz").write_bytes(lzma.compress(records.encode()))
    rows = [
        json.loads(run(bundled, tmp_path / name, "--mode", "document", "--json", "--threads", 1))
        for name in ("a.txt", "a.raw.xz", "b.jsonl.xz")
    ]
    assert rows[0] == rows[1]
    assert rows[2]["documents"] == 3
    assert rows[0]["bits_per_byte"] == pytest.approx(
        rows[0]["negative_log_likelihood"] / math.log(2) / len(TEXT)
    )
    shown = run(bundled, tmp_path / "a.txt")
    assert re.match(
        r"perplexity [0-9.]+ ± [0-9.]+ by token\n[0-9]+ tokens scored, in [0-9]+ windows of 512",
        shown,
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8 text; convert the file"),
        ("a.txt.xz", b"no xz", "is no whole .xz file"),
        ("a.jsonl", b'{"txt": 1}\n', "line 1 is no JSON object with a 'text'"),
        ("a.txt", b"short", "less than 512 tokens"),
    ],
)
def test_unusable_files_are_refused(
    tmp_path: Path, bundled: Path, name: str, data: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    done = CliRunner().invoke(command, [str(bundled), str(path)])
    assert isinstance(done.exception, TrilobitError)
    assert message in str(done.exception)
