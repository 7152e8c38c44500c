"""STS-B: the correlation is scipy's, of vectors as `embed` gives them."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from trilobit import Embedder, FormatError, RequestError, similarity
from trilobit.cli.eval import command
from trilobit.evaluate.sentences import spearman, stsb
from trilobit.vectors import PRECISIONS

SENTENCES = ["The dog ran home.", "A cat sat there.", "The sun is big.", "She baked a cake."]
PAIRS = [
    (score, SENTENCES[score % 4], SENTENCES[(score * 3 + 1) % 4] + " It was good." * (score % 3))
    for score in range(6)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        f"genre\tfile\tyear\t{n:04}\t{score}.0\t{one}\t{other}" + "\tleft\tout" * (n % 2)
        for n, (score, one, other) in enumerate(PAIRS)
    ]
    (tmp_path / "stsb_sts-test.csv.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    return tmp_path


def test_the_correlation_is_scipy_s_with_ties_too() -> None:
    random = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        one, other = random.integers(levels, size=(2, 200)).astype(float)
        assert spearman(one, other + one) == pytest.approx(
            spearmanr(one, other + one)[0], abs=1e-12
        )
    assert spearman(np.ones(5), np.arange(5.0)) == 0


def test_every_precision_is_scored_by_its_own_cosines(model_file: Path, folder: Path) -> None:
    embedder = Embedder(model_file, threads=1)
    scores = stsb(embedder, folder)
    assert [score.metric for score in scores] == [f"spearman ({name})" for name in PRECISIONS]
    assert all((score.task, score.questions, score.shots) == ("stsb", 6, 0) for score in scores)
    cosines = [
        similarity(embedder.encode([one]), embedder.encode([other]))[0, 0]
        for _, one, other in PAIRS
    ]
    assert scores[0].value == pytest.approx(spearmanr(cosines, range(6))[0], abs=1e-12)
    assert len({score.value for score in stsb(embedder, folder, limit=4)}) >= 1


def test_few_pairs_have_no_error(model_file: Path, folder: Path) -> None:
    embedder = Embedder(model_file, threads=1)
    for pairs in (1, 3):
        assert {score.standard_error for score in stsb(embedder, folder, limit=pairs)} == {None}
    assert all(score.standard_error is not None for score in stsb(embedder, folder, limit=4))


def test_examples_of_sentences_are_refused(model_file: Path, folder: Path) -> None:
    arguments = [str(model_file), "--tasks", "stsb", "--data", str(folder), "--few-shot", "3"]
    done = CliRunner().invoke(command, arguments)
    assert isinstance(done.exception, RequestError)
    assert "leave --few-shot out" in str(done.exception)


def test_the_command_prints_them(model_file: Path, folder: Path) -> None:
    arguments = [str(model_file), "--tasks", "stsb", "--data", str(folder)]
    shown = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert [line.split("  ")[0].split()[0] for line in shown.splitlines()] == ["stsb"] * 5
    done = CliRunner().invoke(command, arguments[:3])
    assert isinstance(done.exception, RequestError)
    assert "give --data FOLDER" in str(done.exception)


def test_a_damaged_file_is_named_by_its_line(model_file: Path, tmp_path: Path) -> None:
    embedder = Embedder(model_file, threads=1)
    with pytest.raises(RequestError, match=r"no stsb_sts-test\.csv"):
        stsb(embedder, tmp_path)
    for text, message in (
        ("", "holds no pair"),
        ("a\tb\tc\td\t1.0\tone\ttwo\na\tb\tc\td\tnan\tone\ttwo\n", "line 2 is no pair"),
        ("a\tb\tc\td\t1.0\tone\n", "line 1 is no pair"),
    ):
        (tmp_path / "stsb_sts-test.csv").write_text(text)
        with pytest.raises(FormatError, match=message):
            stsb(embedder, tmp_path)
