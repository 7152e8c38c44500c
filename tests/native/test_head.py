"""The screened head chooses the token that the full head chooses, whatever the head looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from numpy.typing import NDArray

from trilobit import LLM, SamplingParams, _native
from trilobit.formats.packed import reader
from trilobit.formats.packed.form import declare
from trilobit.formats.packed.writer import packed_writer, write_screen
from trilobit.formats.text_files import TextFiles
from trilobit.model import screen, tensor_names
from trilobit.model.config import ModelConfig
from trilobit.synth import synth_packed

VOCAB, HIDDEN = 6007, 60


def config() -> ModelConfig:
    return tiny_config(vocab_size=VOCAB, hidden_size=HIDDEN, tie_word_embeddings=False)


def with_head(path: Path, head_NK: NDArray[np.float32]) -> Path:
    """A random model with this head."""
    body = path.with_suffix(".body")
    synth_packed(config(), body, seed=3)
    source = reader.PackedModel(body).file
    declared = declare(config(), "BF16", TextFiles())
    with packed_writer(path, config(), "BF16", TextFiles(), "test") as file:
        bits = (head_NK.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
        for name, _, _ in declared:
            if name == tensor_names.SCREEN[0]:
                write_screen(file, bits, "BF16")
            elif name == tensor_names.HEAD:
                file.write(name, bits)
            elif name not in tensor_names.SCREEN:
                file.write(name, source.array(name))
    return path


def gaussian(random: np.random.Generator) -> NDArray[np.float32]:
    return random.standard_normal((VOCAB, HIDDEN)).astype(np.float32)


def near_ties(random: np.random.Generator) -> NDArray[np.float32]:
    few = random.standard_normal((VOCAB // 50 + 1, HIDDEN))
    rows = np.repeat(few, 50, axis=0)[:VOCAB]
    return (rows * (1 + 2**-8 * random.integers(-1, 2, rows.shape))).astype(np.float32)


def identical_rows(random: np.random.Generator) -> NDArray[np.float32]:
    return np.repeat(random.standard_normal((VOCAB // 20 + 1, HIDDEN)), 20, axis=0)[:VOCAB].astype(
        np.float32
    )


def one_huge_row(random: np.random.Generator) -> NDArray[np.float32]:
    head = gaussian(random)
    head[4711] *= 1e6
    return head


def heavy_tails(random: np.random.Generator) -> NDArray[np.float32]:
    head = random.standard_t(2, (VOCAB, HIDDEN)) * random.lognormal(0, 2, (VOCAB, 1))
    head[:, 7] *= 40  # an outlier column
    return head.astype(np.float32)


def one_hot_rows(random: np.random.Generator) -> NDArray[np.float32]:
    head = np.zeros((VOCAB, HIDDEN), dtype=np.float32)
    head[np.arange(VOCAB), random.integers(0, HIDDEN, VOCAB)] = random.standard_normal(VOCAB)
    return head


def flattened_by_the_rotation(random: np.random.Generator) -> NDArray[np.float32]:
    """Rows that the rotation turns into a single column: the worst for its idea."""
    rotation = screen.rotate(np.eye(HIDDEN, dtype=np.float32))  # [HIDDEN, padded]
    chosen = rotation[:, random.integers(0, rotation.shape[1], VOCAB)].T
    return (chosen * random.standard_normal((VOCAB, 1))).astype(np.float32)


def zeros_and_subnormals(random: np.random.Generator) -> NDArray[np.float32]:
    head = gaussian(random)
    head[::2] = 0
    head[1::4] *= 1e-38
    return head


HEADS = [
    gaussian,
    near_ties,
    identical_rows,
    one_huge_row,
    heavy_tails,
    one_hot_rows,
    flattened_by_the_rotation,
    zeros_and_subnormals,
]
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "softmax": {"temperature": 0.9},
    "hot": {"temperature": 5.0},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "top_k and min_p": {"temperature": 1.0, "top_k": 10, "min_p": 0.02},
    "top_p": {"temperature": 1.0, "top_p": 0.9},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "bias": {"temperature": 0.7, "logit_bias": {3: 4.0, 17: -float("inf")}},
}


@pytest.fixture(scope="module", params=HEADS, ids=lambda head: head.__name__)
def head_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    return with_head(folder / "model.trilobit", request.param(np.random.default_rng(11)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_screened_tokens_equal_full_tokens(head_file: Path, sampling: str) -> None:
    prompts = [[1 + i, 2, 3 + i] for i in range(5)]
    params = SamplingParams(max_tokens=24, seed=9, ignore_eos=True, **SAMPLINGS[sampling])
    texts = [
        [done.token_ids for done in LLM(head_file, head=head, threads=2).generate(prompts, params)]
        for head in ("screened", "full")
    ]
    assert texts[0] == texts[1]


def test_greedy_is_the_first_of_the_largest_logits(head_file: Path) -> None:
    llm = LLM(head_file, head="screened", threads=1)
    prompt = [5, 6, 7]
    done = llm.generate(prompt, SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    ids = prompt + list(done.token_ids)
    # With an f16 cache too, the same positions give the same logits: they are the same operations.
    logits = llm.logits(ids[:-1])
    assert ids[len(prompt) :] == logits[len(prompt) - 1 :].argmax(axis=1).tolist()


def test_a_gaussian_head_needs_few_rows(tmp_path: Path) -> None:
    path = with_head(tmp_path / "model.trilobit", gaussian(np.random.default_rng(2)))
    llm = LLM(path, head="screened", threads=2)
    llm.generate([[i] for i in range(16)], SamplingParams(max_tokens=16, temperature=0))
    decoder = llm._worker.engine.backend.decoder
    assert decoder.screened_tokens > 200
    # Two bits err by 0.37 of a logit's spread, four by an eighth, and a margin is 8 of those.
    assert 0 < llm.second_looks() < 1 / 2
    assert decoder.rescored_rows / decoder.screened_tokens < VOCAB / 16


@pytest.mark.parametrize("isa", _native.isas())
def test_every_isa_screens_alike(isa: str, tmp_path: Path) -> None:
    path = with_head(tmp_path / "model.trilobit", heavy_tails(np.random.default_rng(4)))
    program = (
        "import sys; from trilobit import LLM, SamplingParams, _native\n"
        "p = SamplingParams(max_tokens=40, temperature=0.8, seed=1, ignore_eos=True)\n"
        "a, b = (LLM(sys.argv[1], head=h, threads=2).generate([[1], [2], [3]], p)"
        " for h in ('screened', 'full'))\n"
        "assert [x.token_ids for x in a] == [x.token_ids for x in b]\n"
        "print(_native.isa())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "TRILOBIT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, isa), done.stderr


# ---- the definition ---------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 60, 64, 100, 640, 2560])
def test_rotation_keeps_products(columns: int) -> None:
    random = np.random.default_rng(columns)
    a, b = random.standard_normal((2, 7, columns)).astype(np.float32)
    # float32 sums of `columns` products of size 1
    assert np.allclose(
        screen.rotate(a) @ screen.rotate(b).T, a @ b.T, atol=1e-5 * columns**0.5 + 1e-5
    )


@pytest.mark.parametrize("shape", [(1, 1), (5, 60), (9, 130), (20, 2560)])
def test_planes_describe_the_rotated_rows(shape: tuple[int, int]) -> None:
    rows, columns = shape
    head = np.random.default_rng(columns).standard_normal(shape).astype(np.float32)
    rest = screen.rotate(head)
    padded = rest.shape[1]
    r, k = np.ogrid[:rows, :padded]
    for name, plane in screen.screen(head).items():
        assert plane.codes.shape == screen.plane_shape(name, rows, columns)
        if name == "coarse":
            held = plane.codes[r // 16, k // 16, r % 16, k % 4]
        else:
            held = plane.codes[r, k // 16 * 4 + k % 4]
        codes = held >> (2 * (k % 16 // 4)) & 3
        rounded, rest = rest, rest - (codes - np.float32(1.5)) * plane.scales[:, None]
        residuals = np.linalg.norm(rest, axis=1)
        assert np.allclose(residuals, plane.residuals, rtol=1e-4, atol=1e-6)
        # What a row is times what is missed of it: a logit along the row has no error.
        assert np.allclose((rounded * rest).sum(axis=1), 0, atol=1e-6 * columns)


def test_of_gaussian_rows_little_is_missed() -> None:
    head = np.random.default_rng(1).standard_normal((20, 2560)).astype(np.float32)
    planes = screen.screen(head)
    for name, share in (("coarse", 0.4), ("fine", 0.15)):
        assert (planes[name].residuals < share * np.linalg.norm(head, axis=1)).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_rows_of_one_size_are_held_as_they_are(value: float) -> None:
    head = np.zeros((3, 64), dtype=np.float32)
    head[1, 5] = value  # flat when it is rotated
    for plane in screen.screen(head).values():
        assert np.allclose(plane.residuals, 0, atol=1e-6)


@pytest.mark.parametrize("exponent", [-110, -60, 1, 63, 64, 100])
def test_rows_of_any_length_are_screened_alike(exponent: int) -> None:
    head = np.random.default_rng(9).standard_normal((20, 130)).astype(np.float32)
    factor = np.float32(2.0**exponent)
    found = screen.screen(head * factor)
    for name, (codes, scales, residuals) in screen.screen(head).items():
        assert (found[name].codes == codes).all()
        assert (found[name].scales == scales * factor).all()
        assert (found[name].residuals == residuals * factor).all()


def test_long_rows_are_chosen_as_by_the_full_head(tmp_path: Path) -> None:
    head = gaussian(np.random.default_rng(5)) * np.float32(1e19)
    path = with_head(tmp_path / "model.trilobit", head)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    full, screened = (LLM(path, head=head) for head in ("full", "screened"))  # type: ignore[arg-type]
    assert screened.generate([5, 6], params).token_ids == full.generate([5, 6], params).token_ids


def test_rows_whose_logits_float32_cannot_hold_are_refused_before_a_file_is_written(
    tmp_path: Path,
) -> None:
    from trilobit import FormatError

    head = gaussian(np.random.default_rng(5))
    head[7] = 3e38
    with pytest.raises(FormatError, match=r"weights up to 2.99e\+38, whose logits float32 cannot"):
        with_head(tmp_path / "model.trilobit", head)
    assert not (tmp_path / "model.trilobit").exists()


@pytest.mark.parametrize("name", tensor_names.SCREEN[2::3])
def test_screen_of_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    from trilobit import FormatError

    path = with_head(tmp_path / "model.trilobit", gaussian(np.random.default_rng(5)))
    info = reader.PackedModel(path).file.info(name)
    with path.open("r+b") as file:
        file.seek(info.begin)
        file.write(np.array([np.nan], dtype="<f4").tobytes())
    with pytest.raises(FormatError, match=name):
        LLM(path, head="screened")
    LLM(path, head="full")
