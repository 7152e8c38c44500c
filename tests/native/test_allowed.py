"""What a grammar leaves to choose from: the choice of the full head, whatever the set, by as few
rows as it takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from test_head import SAMPLINGS, VOCAB, gaussian, near_ties, with_head

from trilobit import LLM, _native
from trilobit.bundled import DEFAULT
from trilobit.engine.native import NativeBackend

Mask = NDArray[np.uint32]
PROMPTS = 5  # hidden states that are chosen from together


def mask_of(ids: object, vocab: int = VOCAB) -> Mask:
    bits = np.zeros(-(-vocab // 32) * 32, dtype=bool)
    bits[np.asarray(ids, dtype=np.intp)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


def masks(vocab: int) -> dict[str, Mask]:
    random = np.random.default_rng(5)
    return {
        "one": mask_of([vocab - 1], vocab),
        "few": mask_of(random.choice(vocab, 20, replace=False), vocab),
        "a third": mask_of(random.choice(vocab, vocab // 3, replace=False), vocab),
        "most": mask_of(random.choice(vocab, vocab - 40, replace=False), vocab),
        "all": mask_of(np.arange(vocab), vocab),
        "none": mask_of([], vocab),
        "short": mask_of(np.arange(64), vocab)[:2],  # what is behind the last word is forbidden
    }


class States:
    """A model that has computed the states behind a few prompts."""

    def __init__(self, model: str | Path, *, head: Literal["screened", "full"]) -> None:
        self.llm = LLM(model, head=head, threads=2, kv_memory_mb=8)
        self.backend = self.llm._worker.engine.backend
        assert isinstance(self.backend, NativeBackend)
        self.decoder = self.backend.decoder
        self.vocab = self.backend.vocab_size
        ids = np.array([[1 + i, 2, 3 + i] for i in range(PROMPTS)], dtype=np.int32)
        self.decoder.forward(
            ids.reshape(-1),
            np.tile(np.arange(3, dtype=np.int32), PROMPTS),
            np.repeat(np.arange(PROMPTS, dtype=np.int32), 3),
            np.arange(PROMPTS, dtype=np.int32)[:, None],
            np.arange(2, 3 * PROMPTS, 3, dtype=np.int32),
        )

    def choose(self, masks: list[Mask | None], **sampling: Any) -> list[int]:
        samplers = [sampler(i, **sampling) for i in range(PROMPTS)]
        rows = [None if mask is None else mask[None] for mask in masks]
        return [one for [one] in self.decoder.verify(samplers, [[]] * PROMPTS, rows)]

    def by_logits(self, masks: list[Mask | None], **sampling: Any) -> list[int]:
        """The definition: of all logits those that are allowed, the others -∞."""
        chosen = []
        for number, (row, mask) in enumerate(
            zip(self.backend.logits(0, PROMPTS), masks, strict=True)
        ):
            if mask is not None:
                allowed = np.zeros(self.vocab, dtype=bool)
                bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.vocab]
                allowed[: len(bits)] = bits
                row[~allowed] = -np.inf
            chosen.append(sampler(number, **sampling).sample(row))
        return [max(one, -1) if masks[i] is not None else one for i, one in enumerate(chosen)]


def sampler(seed: int, **sampling: Any) -> _native.Sampler:
    made = _native.Sampler(seed=seed, **sampling)
    made.observe(np.array([2], dtype=np.int32))
    made.accept(4)
    return made


@pytest.fixture(scope="module", params=["gaussian", "near ties", "bundled"])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[States, States]:
    """The same model with the screened head and with the full one."""
    path: str | Path = DEFAULT
    if request.param != "bundled":
        head = {"gaussian": gaussian, "near ties": near_ties}[request.param]
        path = tmp_path_factory.mktemp("allowed") / "model.trilobit"
        with_head(path, head(np.random.default_rng(11)))
    return States(path, head="screened"), States(path, head="full")


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_masked_choice_is_that_of_the_full_head(
    models: tuple[States, States], sampling: str
) -> None:
    screened, full = models
    options = SAMPLINGS[sampling]
    sets = masks(screened.vocab)
    mixed: list[Mask | None] = [sets["few"], None, sets["most"], sets["one"], sets["a third"]]
    for several in ([[one] * PROMPTS for one in sets.values()]) + [mixed]:
        expected = full.by_logits(several, **options)
        assert full.choose(several, **options) == expected
        assert screened.choose(several, **options) == expected


def test_of_few_allowed_tokens_only_their_rows_are_computed(
    models: tuple[States, States],
) -> None:
    screened, _ = models
    tokens, rows = screened.decoder.screened_tokens, screened.decoder.rescored_rows
    for sampling in SAMPLINGS.values():
        screened.choose([masks(screened.vocab)["few"]] * PROMPTS, **sampling)
    count = PROMPTS * len(SAMPLINGS)
    assert screened.decoder.screened_tokens - tokens == count
    assert screened.decoder.rescored_rows - rows == 20 * count


def test_each_place_of_a_draft_has_its_own_set(models: tuple[States, States]) -> None:
    for states in models:
        draft = [7, 9]
        rows = np.stack([mask_of([ids], states.vocab) for ids in (7, 9, 11)])
        [chosen] = states.decoder.verify([sampler(0, temperature=0.0)], [draft], [rows])
        assert chosen == [7, 9, 11]
        rows[1] = mask_of([8], states.vocab)
        [chosen] = states.decoder.verify([sampler(0, temperature=0.0)], [draft], [rows])
        assert chosen == [7, 8]


def test_no_end_before_min_tokens(models: tuple[States, States]) -> None:
    for states in models:
        [first, *_] = states.choose([None] * PROMPTS, temperature=0.0)
        held = {"temperature": 0.0, "min_tokens": 2, "ends": [first, 3, 1]}
        chosen = states.choose([None] * PROMPTS, **held)[0]
        logits = states.backend.logits(0, 1)[0]
        logits[[first, 3, 1]] = -np.inf
        assert chosen == logits.argmax()
        only = [mask_of([first], states.vocab)] * PROMPTS
        assert states.choose(only, **held)[0] == _native.Sampler.ALL_FORBIDDEN
        held["min_tokens"] = 1  # one token was drawn before
        assert states.choose([None] * PROMPTS, **held)[0] == first


def test_masks_of_a_wrong_shape_are_refused(models: tuple[States, States]) -> None:
    states = models[1]
    one = mask_of([1], states.vocab)[None]
    with pytest.raises(ValueError, match="a mask, or None, for each sampler"):
        states.decoder.verify([sampler(0)], [[]], [one, one])
    with pytest.raises(ValueError, match="a row of a mask for each output row"):
        states.decoder.verify([sampler(0)], [[1]], [one])


@pytest.mark.parametrize("isa", sorted({*_native.isas()} - {_native.isa()}))
def test_other_instruction_sets_choose_the_same(isa: str) -> None:
    claims = f"{__file__}::{test_a_masked_choice_is_that_of_the_full_head.__name__}"
    run = [sys.executable, "-m", "pytest", "-q", claims, "-k", "near"]
    subprocess.run(run, env=os.environ | {"TRILOBIT_ISA": isa}, check=True, timeout=600)
