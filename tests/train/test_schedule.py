"""The two-stage schedule of the papers: values, the cut, and its place after a resume."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from trilobit.train.recipes import Schedule, recipe_of
from trilobit.train.schedule import TwoStage, learning_rate, quantised_share, weight_decay

# Powers of two, so that the expected numbers are exact.
LINEAR = Schedule(
    steps=16, warmup_steps=0, stage_1=(1.0, 0.5), stage_2=(0.25, 0.0), weight_decay=0.125
)


def _rates(schedule: Schedule) -> list[float]:
    return [learning_rate(schedule, step) for step in range(schedule.steps)]


def test_linear_stages_start_and_end_where_the_recipe_says() -> None:
    first = [1.0 - step / 16 for step in range(8)]
    second = [0.25 - step / 32 for step in range(8)]
    assert _rates(LINEAR) == first + second


def test_cosine_stages_are_half_waves() -> None:
    rates = _rates(dataclasses.replace(LINEAR, decay="cosine"))
    for step in range(8):
        fall = (1 - math.cos(math.pi * step / 8)) / 2
        # One rounding more or less of numbers below 1.
        assert rates[step] == pytest.approx(1.0 - 0.5 * fall, abs=1e-15)
        assert rates[8 + step] == pytest.approx(0.25 - 0.25 * fall, abs=1e-15)


def test_the_rate_drops_at_the_half() -> None:
    rates = _rates(LINEAR)
    falls = [before - after for before, after in itertools.pairwise(rates)]
    assert falls.index(max(falls)) == 7


def test_warmup_rises_to_the_full_rate() -> None:
    rates = _rates(dataclasses.replace(LINEAR, warmup_steps=4))
    assert rates[:4] == [0.25 * 1.0, 0.5 * 0.9375, 0.75 * 0.875, 0.8125]
    assert rates[4:] == _rates(LINEAR)[4:]


@pytest.mark.parametrize(
    ("kind", "steps", "wanted"),
    [
        *(("sft", 60, 6), ("dpo", 5, 0), ("sft", 5000, 100)),
        *(("embed", 60, 6), ("pretrain", 60, 100)),
    ],
)
def test_fine_tuning_warms_up_for_a_tenth_of_its_steps_at_most(
    kind: str, steps: int, wanted: int
) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    values: dict[str, Any] = {"kind": kind, "name": "short", "data": {"files": ["a.jsonl"]}}
    values |= {"model": shape} if kind == "pretrain" else {"start": "base"}

    def rising(**schedule: int) -> int:
        recipe = recipe_of(values | {"schedule": schedule})
        return recipe.schedule.rising_steps

    assert rising(steps=steps) == wanted
    assert rising(steps=steps, warmup_steps=7) == 7


def test_weight_decay_ends_at_the_half() -> None:
    assert [weight_decay(LINEAR, step) for step in range(16)] == [0.125] * 8 + [0.0] * 8


def test_a_last_stage_of_a_given_length_leaves_the_rest_to_the_first() -> None:
    stable = dataclasses.replace(LINEAR, stage_1=(1.0, 1.0), stage_2=(1.0, 0.0), stage_2_steps=4)
    assert _rates(stable) == [1.0] * 12 + [1.0, 0.75, 0.5, 0.25]
    assert [weight_decay(stable, step) for step in range(16)] == [0.125] * 12 + [0.0] * 4
    # The same from an earlier place: it cools down there.
    assert _rates(dataclasses.replace(stable, steps=8)) == [1.0] * 4 + [1.0, 0.75, 0.5, 0.25]
    alone = dataclasses.replace(stable, stage_2_steps=100, stage_2_weight_decay=0.5)
    assert _rates(alone) == [1.0 - step / 16 for step in range(16)]
    assert weight_decay(alone, 0) == 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_and_odd_runs_have_a_rate_for_every_step(steps: int) -> None:
    rates = _rates(dataclasses.replace(LINEAR, steps=steps))
    assert len(rates) == steps
    assert all(0 < rate <= 1 for rate in rates)


def test_quantised_share_rises_from_0_to_1() -> None:
    schedule = dataclasses.replace(LINEAR, quantisation_warmup_steps=4)
    assert [quantised_share(schedule, step) for step in range(6)] == [
        0.0,
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]
    assert quantised_share(LINEAR, 0) == 1.0


def _optimiser(schedule: Schedule) -> tuple[torch.optim.Optimizer, TwoStage]:
    decaying, free = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [
        {"params": [decaying], "weight_decay": schedule.weight_decay},
        {"params": [free], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=schedule.stage_1[0])
    return optimiser, TwoStage(optimiser, schedule)


def _groups(optimiser: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["weight_decay"]) for group in optimiser.param_groups]


def test_the_optimiser_gets_both_rates_of_every_step() -> None:
    optimiser, scheduler = _optimiser(LINEAR)
    for step in range(16):
        rate = learning_rate(LINEAR, step)
        assert _groups(optimiser) == [(rate, weight_decay(LINEAR, step)), (rate, 0.0)]
        optimiser.step()
        scheduler.step()


@pytest.mark.parametrize("done", [3, 8, 11])
def test_a_loaded_place_gives_the_rates_of_that_step(done: int) -> None:
    optimiser, scheduler = _optimiser(LINEAR)
    for _ in range(done):
        optimiser.step()
        scheduler.step()
    again, resumed = _optimiser(LINEAR)
    again.load_state_dict(optimiser.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for _ in range(done, 15):
        assert _groups(again) == _groups(optimiser)
        assert resumed.get_last_lr() == scheduler.get_last_lr()
        for o, s in ((optimiser, scheduler), (again, resumed)):
            o.step()
            s.step()


def test_a_prolonged_run_goes_on_in_its_new_schedule() -> None:
    optimiser, scheduler = _optimiser(LINEAR)
    for _ in range(10):
        optimiser.step()
        scheduler.step()
    longer = dataclasses.replace(LINEAR, steps=32)
    again, resumed = _optimiser(longer)
    again.load_state_dict(optimiser.state_dict())  # its groups hold the decay of stage 2
    resumed.load_state_dict(scheduler.state_dict())
    assert _groups(again) == [(learning_rate(longer, 10), 0.125), (learning_rate(longer, 10), 0.0)]
