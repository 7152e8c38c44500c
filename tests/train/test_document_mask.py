"""`document_mask`: what stands before a document in its window is not there for it."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
from fables import RECIPE, WINDOW, Run, finished_run, train, write_recipe

from trilobit.train.data.windows import Ends, HeldOutWindows, Passes, TrainingWindows
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe

MASKED = RECIPE.replace("held_out_every", "document_mask = true\nheld_out_every")
# Of a window: the end of one document, a whole one, and the beginning of another.
DOCUMENTS = ([7, 9, 11, 1], [0, 12, 13, 14, 15, 1], [0, 16, 17, 18, 19, 20])
WINDOW_IDS = torch.tensor([token for document in DOCUMENTS for token in document])
PLACES = [place for document in DOCUMENTS for place in range(len(document))]


def test_places_are_counted_from_the_beginning_of_each_document() -> None:
    assert Ends(bos_id=0, eos_id=1).positions(WINDOW_IDS).tolist() == PLACES
    assert Ends(bos_id=0, eos_id=None).positions(WINDOW_IDS).tolist() == PLACES
    parts = Ends(bos_id=0, eos_id=1).positions(WINDOW_IDS.reshape(2, 8))
    assert parts.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 0, 1, 2, 3, 4, 5]]


def test_places_where_nothing_begins_a_document_or_one_token_does_both() -> None:
    ids = torch.tensor([5, 6, 1, 7, 8, 9, 1, 2])
    assert Ends(bos_id=None, eos_id=1).positions(ids).tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    ids = torch.tensor([5, 6, 1, 1, 8, 9, 1, 1])
    assert Ends(bos_id=1, eos_id=1).positions(ids).tolist() == [0, 1, 2, 0, 1, 2, 3, 0]


def test_windows_have_places_only_where_they_are_asked_for() -> None:
    tokens = np.array(WINDOW_IDS.tolist() * 4, dtype=np.uint16)
    ends = Ends(bos_id=0, eos_id=1)
    passes = Passes(tokens, window=16, seeds=(0,))
    for windows in (
        TrainingWindows(passes, count=3, short=8, whole_from=2, ends=ends),
        HeldOutWindows(tokens, window=16, bos_id=0, ends=ends),
    ):
        for index in range(3):
            example = windows[index]
            assert example["position_ids"].equal(ends.positions(example["input_ids"]))
    assert set(TrainingWindows(passes, count=3)[0]) == {"input_ids", "labels"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("weights", ["ternary", "float"])
def test_a_document_in_a_window_has_the_logits_that_it_has_alone(
    tmp_path: Path, attention: str, weights: str
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, MASKED))
    recipe = dataclasses.replace(recipe, weights=weights)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = build_model(recipe, 320, bos=0, eos=1).eval()  # type: ignore[arg-type]
    model.set_attn_implementation(attention)
    model.config.use_cache = False
    places = Ends(bos_id=0, eos_id=1).positions(WINDOW_IDS)
    # Another window beside it, which is one document: a mask is of each window.
    beside = torch.arange(20, 20 + len(WINDOW_IDS))
    with torch.no_grad():
        packed = model(
            input_ids=torch.stack([WINDOW_IDS, beside]),
            position_ids=torch.stack([places, torch.arange(len(beside))]),
        ).logits
        unmasked = model(input_ids=WINDOW_IDS[None]).logits[0]
        start = 0
        for document in map(torch.tensor, DOCUMENTS):
            alone = model(input_ids=document[None]).logits[0]
            ours = packed[0, start : start + len(document)]
            # Sums over fewer keys add up in another order: a few units of float32's 1e-7, of
            # logits of about 1. No input lies so near to a tie of the rounding to int8 here.
            torch.testing.assert_close(ours, alone, atol=1e-5, rtol=1e-5)
            start += len(document)
        torch.testing.assert_close(packed[1], model(input_ids=beside[None]).logits[0])
    # Without it a document sees what stands before it.
    assert (unmasked[4:] - packed[0, 4:]).abs().max() > 1e-3


def _log(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished_run(tmp_path_factory.getbasetemp())


def test_a_run_with_masks_is_measured_document_by_document(run: Run, tmp_path: Path) -> None:
    short = MASKED.replace("held_out_every", "short_window = 16\nheld_out_every")
    recipe, output = write_recipe(tmp_path, short), tmp_path / "run"
    outcome = train(recipe, output, "--max-steps", "26", "--weights", "float")
    assert outcome.code == 0, outcome.err
    losses = [entry["loss"] for entry in _log(output) if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    model, tokens = stock.load(output / "model"), np.load(output / "corpus" / "held_out.npy")
    nats, counted = 0.0, 0
    for window in tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW).astype(np.int64):
        begins = [0, *(n for n in range(1, WINDOW) if window[n] == 0), WINDOW]
        for start, end in pairwise(begins):
            document = torch.from_numpy(window[start:end])[None]
            if end - start > 1:
                loss = stock.held_out_loss(stock.logits(model, document), document)
                nats, counted = nats + loss * (end - start - 1), counted + end - start - 1
    # The log has four digits; without codes there are no rounding ties.
    assert _log(output)[-1]["held_out_loss"] == pytest.approx(nats / counted, abs=1e-4)
    assert nats / counted != pytest.approx(_log(run.output)[-1]["held_out_loss"], rel=1e-2)


def test_a_teacher_sees_what_its_student_sees(run: Run, tmp_path: Path) -> None:
    of_teacher = f'kind = "distill"\nteacher = "{run.output / "model"}"\nteacher_share = 1.0\n'
    begin, end = MASKED.index("[model]"), MASKED.index("[data]")
    recipe = (
        of_teacher + MASKED[:begin] + MASKED[end:].replace("quantisation_warmup_steps = 10", "")
    )
    path, output = (
        write_recipe(tmp_path, recipe.replace("log_every = 5", "log_every = 1")),
        tmp_path / "run",
    )
    outcome = train(path, output, "--max-steps", "1")
    assert outcome.code == 0, outcome.err
    # Who is his own teacher has nothing to learn, as long as both see the same.
    assert abs(_log(output)[0]["loss"]) < 1e-4
