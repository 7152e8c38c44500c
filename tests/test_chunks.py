"""Plans of prefill steps: every token once, nothing beyond what a step may hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trilobit.engine.chunks import plan

from trilobit.engine.blocks import blocks_for


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 150), st.integers(0, 20))
def test_every_token_is_computed_once_within_bounds(
    lengths: list[int], batch_tokens: int, more: int
) -> None:
    blocks = blocks_for(max(lengths, default=1)) + more
    done = [0] * len(lengths)
    for step in plan(lengths, batch_tokens=batch_tokens, blocks=blocks):
        assert 1 <= sum(chunk.end - chunk.start for chunk in step) <= batch_tokens
        assert len({chunk.text for chunk in step}) == len(step)
        assert sum(blocks_for(lengths[chunk.text]) for chunk in step) <= blocks
        # What began before and is not finished goes on in this step: nothing else holds blocks.
        begun = {n for n, count in enumerate(done) if 0 < count < lengths[n]}
        assert begun <= {chunk.text for chunk in step}
        for text, start, end in step:
            assert done[text] == start < end
            done[text] = end
    assert done == lengths


def test_steps_are_full_and_like_lengths_together() -> None:
    steps = list(plan([5, 40, 8, 7, 40], batch_tokens=50, blocks=10))
    assert steps == [
        [(1, 0, 40), (4, 0, 10)],
        [(4, 10, 40), (2, 0, 8), (3, 0, 7), (0, 0, 5)],
    ]


def test_a_step_ends_where_blocks_do() -> None:
    steps = list(plan([3, 2, 1], batch_tokens=50, blocks=2))
    assert steps == [[(0, 0, 3), (1, 0, 2)], [(2, 0, 1)]]
