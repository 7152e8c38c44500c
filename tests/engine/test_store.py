"""Blocks kept beyond the pool: found again, loaded a few at a time while others write."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_backend import NumpyBackend

from trilobit import SamplingParams
from trilobit.engine import scheduler
from trilobit.engine.blocks import BLOCK, Key
from trilobit.engine.engine import Engine
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence

PROMPT = [1 + n * n % 90 for n in range(6 * BLOCK + 3)]


class Kept:
    """Blocks in a dictionary."""

    def __init__(self) -> None:
        self.blocks: dict[Key, bytes] = {}
        self.backend: NumpyBackend | None = None
        self.loads = 0

    def load(self, key: Key, block: int) -> bool:
        self.loads += 1
        if key not in self.blocks:
            return False
        assert self.backend is not None
        self.backend.cache[block] = np.frombuffer(self.blocks[key], dtype=np.int64)
        return True

    def keep(self, key: Key, block: int) -> None:
        assert self.backend is not None
        self.blocks.setdefault(key, self.backend.cache[block].tobytes())

    def used(self, root: Key, token_ids: list[int]) -> None:
        assert len(token_ids) % BLOCK == 0

    def close(self) -> None:
        """Nothing was begun."""


def make_engine(store: Kept | None, *, blocks: int = 32) -> Engine:
    backend = NumpyBackend(blocks=blocks, batch_tokens=64)
    if store is not None:
        store.backend = backend
    return Engine(backend, sequences=4, store=store)


def make_sequence(prompt: list[int], count: int) -> Sequence:
    params = SamplingParams(temperature=0, max_tokens=count)
    return Sequence(Request(prompt=prompt, params=params, seed=1, limit=len(prompt) + count))


def run(engine: Engine, *sequences: Sequence) -> list[list[int]]:
    engine.inbox.extend(sequences)
    while engine.step():
        pass
    assert all(one.error is None for one in sequences)
    return [one.tokens for one in sequences]


def test_what_was_kept_is_not_computed_again() -> None:
    [wanted] = run(make_engine(None), make_sequence(PROMPT, 40))
    store = Kept()
    assert run(make_engine(store), make_sequence(PROMPT, 40)) == [wanted]
    again = make_sequence(PROMPT, 40)
    assert run(make_engine(store), again) == [wanted]
    assert again.cached_tokens == 6 * BLOCK
    longer = make_sequence(wanted, 5)  # what was written is there as well
    run(make_engine(store), longer)
    assert longer.cached_tokens == (len(wanted) - 1) // BLOCK * BLOCK


def test_a_hole_ends_what_can_be_used() -> None:
    store = Kept()
    [wanted] = run(make_engine(store), make_sequence(PROMPT, 40))
    del store.blocks[list(store.blocks)[3]]
    again = make_sequence(PROMPT, 40)
    assert run(make_engine(store), again) == [wanted]
    assert again.cached_tokens == 3 * BLOCK


def test_loading_lets_running_texts_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    [wanted], store = run(make_engine(None), make_sequence(PROMPT, 40)), Kept()
    run(make_engine(store), make_sequence(PROMPT, 40))
    monkeypatch.setattr(scheduler, "_LOADING_S", 0.0)  # a block a step
    engine, other, late = make_engine(store), make_sequence([5, 6], 30), make_sequence(PROMPT, 40)
    engine.inbox.append(other)
    for _ in range(3):
        engine.step()
    engine.inbox.append(late)
    store.loads, seen = 0, []
    while not late.computed:
        tokens = len(other.tokens)
        engine.step()
        seen.append(store.loads)
        assert len(other.tokens) == tokens + 1
    assert seen == [1, 2, 3, 4, 5, 6, 6]  # then it begins
    run(engine)
    assert late.tokens == wanted
    assert late.cached_tokens == 6 * BLOCK
    assert [other.tokens] == run(make_engine(None), make_sequence([5, 6], 30))


def test_a_full_pool_loads_nothing_in_vain() -> None:
    [wanted], store = run(make_engine(None), make_sequence(PROMPT, 20)), Kept()
    run(make_engine(store), make_sequence(PROMPT, 20))
    engine = make_engine(store, blocks=9)  # for one of them at a time
    first, second = make_sequence(PROMPT[::-1], 60), make_sequence(PROMPT, 20)
    engine.inbox.extend((first, second))
    engine.step()
    store.loads = 0
    while not first.over:
        engine.step()
        assert second.computed or not store.loads
    run(engine)
    assert second.tokens == wanted
    assert second.cached_tokens == 6 * BLOCK
