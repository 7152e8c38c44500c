"""The native sampler against the written-out definition in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import _native

Sampler = _native.Sampler
F32 = np.float32
LOGITS = np.random.default_rng(0).normal(0, 2, 40).astype(F32)
DRAWS = 20_000


def distribution(
    logits: NDArray[np.float32],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> NDArray[np.float64]:
    """Probabilities after temperature, top-k, top-p and min-p, in float64."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(logits)), -weights))  # the first of equals first
    kept = order[:top_k] if top_k else order
    mass = np.cumsum(weights[kept]) / weights[kept].sum()
    kept = kept[: int((mass < top_p).sum()) + 1]  # the least that reach top_p
    kept = kept[weights[kept] >= min_p * weights.max()]
    chosen = np.zeros(len(logits))
    chosen[kept] = weights[kept] / weights[kept].sum()
    return chosen


def draws(sampler: _native.Sampler, logits: NDArray[np.float32], count: int) -> list[int]:
    return [sampler.sample(logits) for _ in range(count)]


def assert_drawn_from(ids: list[int], probabilities: NDArray[np.float64]) -> None:
    """Pearson's chi-square, no further from its mean than five of its standard deviations."""
    counts = np.bincount(ids, minlength=len(probabilities))
    assert (counts[probabilities == 0] == 0).all()
    expected = probabilities * len(ids)
    rare = expected < 5  # the usual condition of the test: pool what is rarer
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom) or freedom == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 0.7, "top_k": 100, "top_p": 0.3},
    ],
    ids=str,
)
def test_draws_follow_the_softmax(options: dict[str, float]) -> None:
    sampler = Sampler(seed=1, **options)
    assert_drawn_from(draws(sampler, LOGITS, DRAWS), distribution(LOGITS, **options))


def test_first_draws_of_many_seeds_follow_the_softmax() -> None:
    ids = [Sampler(seed=seed).sample(LOGITS) for seed in range(DRAWS)]
    assert_drawn_from(ids, distribution(LOGITS))


def test_seeds_that_differ_in_high_bits_only_are_different() -> None:
    ids = [Sampler(seed=seed << 44).sample(LOGITS) for seed in range(DRAWS)]
    assert_drawn_from(ids, distribution(LOGITS))


def test_successive_draws_are_independent() -> None:
    logits = np.array([0.5, 0.0, -1.0, 1.0], F32)
    p = distribution(logits)
    ids = np.array(draws(Sampler(seed=4), logits, DRAWS))
    for lag in (1, 2, 7):
        assert_drawn_from((4 * ids[:-lag] + ids[lag:]).tolist(), np.outer(p, p).reshape(-1))


def test_neighbouring_seeds_are_independent() -> None:
    logits = np.array([0.5, 0.0, -1.0, 1.0], F32)
    p = distribution(logits)
    ids = np.array([Sampler(seed=seed).sample(logits) for seed in range(DRAWS)])
    assert_drawn_from((4 * ids[:-1] + ids[1:]).tolist(), np.outer(p, p).reshape(-1))


# Probabilities 1/2, 1/4, ... whose sums are exact: on the boundary there is no rounding.
HALVES = (np.log(2.0) * -np.arange(6)).astype(F32)


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 3}, 3),
        ({"top_k": 6}, 6),
        ({"top_k": 1000}, 6),
        ({"top_p": 0.01}, 1),
        ({"top_p": 0.5}, 1),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.8}, 3),
        ({"top_p": 1.0}, 6),
        ({"min_p": 0.2}, 3),
        ({"min_p": 0.3}, 2),
        ({"min_p": 1.0}, 1),
        # Top-p counts what top-k left: 4/7 and 2/7.
        ({"top_k": 3, "top_p": 0.6}, 2),
        ({"top_k": 3, "top_p": 0.5}, 1),
    ],
    ids=str,
)
def test_support_is_exact(options: dict[str, float], support: int) -> None:
    shuffled = np.random.default_rng(1).permutation(6)
    logits = np.empty(6, F32)
    logits[shuffled] = HALVES
    ids = draws(Sampler(seed=2, **options), logits, 3000)  # the rarest has 3000/63
    assert set(ids) == set(shuffled[:support].tolist())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_support_equals_numpy_for_any_options(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32))
    n = data.draw(st.integers(1, 300))
    options = {
        "temperature": data.draw(st.floats(0.1, 5)),
        "top_k": data.draw(st.integers(0, 310)),
        "top_p": data.draw(st.floats(0.05, 1)),
        "min_p": data.draw(st.floats(0, 1)),
    }
    logits = np.random.default_rng(seed).normal(0, 3, n).astype(F32)
    p = distribution(logits, **options)
    # Whether the last one belongs can be a matter of float32 rounding of the options.
    nudged = [
        distribution(logits, **{**options, "top_p": min(1, options["top_p"] * a), "min_p": b})
        for a in (1 - 1e-5, 1 + 1e-5)
        for b in (options["min_p"] * (1 - 1e-5), min(1, options["min_p"] * (1 + 1e-5)))
    ]
    allowed = np.flatnonzero(p + sum(nudged))
    ids = draws(Sampler(seed=seed, **options), logits, 200)
    assert set(ids) <= set(allowed.tolist())


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    repetition=st.floats(0.25, 4, width=32),
    frequency=st.floats(-2, 2, width=32),
    presence=st.floats(-2, 2, width=32),
)
def test_penalties_and_bias_equal_the_formula(
    seed: int, repetition: float, frequency: float, presence: float
) -> None:
    random = np.random.default_rng(seed)
    n = 30
    prompt = random.integers(0, n, 10).astype(np.int32)
    bias = {
        int(i): float(F32(b))
        for i, b in zip(random.permutation(n)[:5], random.normal(0, 2, 5), strict=True)
    }
    sampler = Sampler(
        temperature=0,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias=bias,
    )
    sampler.observe(prompt)
    times = np.zeros(n, F32)
    seen = np.zeros(n, bool)
    seen[prompt] = True
    for _ in range(30):
        logits = random.normal(0, 1, n).astype(F32)
        wanted = np.where(logits > 0, logits / F32(repetition), logits * F32(repetition))
        wanted = np.where(seen, wanted, logits)
        wanted = wanted - np.where(times > 0, F32(frequency) * times + F32(presence), F32(0))
        for token, value in bias.items():
            wanted[token] += F32(value)
        token = sampler.sample(logits)
        assert token == wanted.argmax()
        times[token] += 1
        seen[token] = True


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 500))
def test_temperature_zero_and_top_k_one_take_the_first_of_the_largest(seed: int, n: int) -> None:
    logits = np.random.default_rng(seed).integers(-5, 5, n).astype(F32)  # many equals
    assert Sampler(temperature=0).sample(logits) == logits.argmax()
    assert Sampler(seed=seed, top_k=1).sample(logits) == logits.argmax()
    # Greedy comes before every filter.
    assert Sampler(temperature=0, top_k=3, top_p=0.1, min_p=0.9).sample(logits) == logits.argmax()


def test_a_forbidden_token_never_comes() -> None:
    likeliest = int(LOGITS.argmax())
    for temperature in (0.0, 1.0, 50.0):
        sampler = Sampler(temperature=temperature, seed=3, logit_bias={likeliest: -math.inf})
        assert likeliest not in draws(sampler, LOGITS, 2000)


def test_a_forced_token_always_comes() -> None:
    unlikeliest = int(LOGITS.argmin())
    for temperature in (0.0, 1.0, 100.0):
        sampler = Sampler(temperature=temperature, seed=3, logit_bias={unlikeliest: 1e30})
        assert set(draws(sampler, LOGITS, 2000)) == {unlikeliest}


@pytest.mark.parametrize("logits", [[-1e30, 1e30, 0, 0, 0], [3e38] * 5, [-3e38] * 5, [0.0]])
@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1.0, 100.0])
def test_extreme_logits_give_a_token(logits: list[float], temperature: float) -> None:
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        token = Sampler(temperature=temperature, seed=1, **options).sample(np.array(logits, F32))
        assert 0 <= token < len(logits)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"top_p": 0.5}, {"top_k": 2},
                                     {"min_p": 0.1, "seed": 3}])  # fmt: skip
@pytest.mark.parametrize(
    ("logits", "bias", "why"),
    [
        ([NAN] * 4, {}, "NOT_NUMBERS"),
        ([NAN] * 4, {1: -INF}, "NOT_NUMBERS"),
        ([1.0, INF, 2.0, NAN], {}, "NOT_NUMBERS"),
        ([1.0, INF, 2.0, INF], {2: 3.0}, "NOT_NUMBERS"),
        ([-INF] * 4, {}, "NOT_NUMBERS"),
        ([1.0, 2.0, 3.0, 4.0], dict.fromkeys(range(4), -INF), "ALL_FORBIDDEN"),
        ([1.0, 2.0, 3.0, NAN], dict.fromkeys(range(4), -INF), "NOT_NUMBERS"),
    ],
)
def test_where_no_token_can_be_chosen_the_sampler_says_why_and_stays_as_it_was(
    logits: list[float], bias: dict[int, float], why: str, options: dict[str, float]
) -> None:
    sampler = Sampler(**options, logit_bias=bias)
    found = sampler.sample(np.array(logits, dtype=F32))
    assert found == getattr(Sampler, why) < 0
    fresh = Sampler(**options)
    other = Sampler(**options)
    assert other.sample(np.full(4, NAN, dtype=F32)) == Sampler.NOT_NUMBERS
    assert draws(other, LOGITS, 5) == draws(fresh, LOGITS, 5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_no_candidate_beside_others(temperature: float) -> None:
    sampler = Sampler(temperature=temperature)
    assert draws(sampler, np.array([NAN, -INF, 1.0, NAN], dtype=F32), 20) == [2] * 20


@pytest.mark.parametrize("top_p", [1e-50, 5e-324, 1e-45, 1e-30])
def test_a_top_p_below_what_float32_holds_keeps_the_likeliest(top_p: float) -> None:
    sampler = Sampler(temperature=1.0, top_p=top_p, seed=1)
    assert draws(sampler, LOGITS, 50) == [int(LOGITS.argmax())] * 50


def test_same_seed_same_draws() -> None:
    first, second = (draws(Sampler(seed=2**64 - 1), LOGITS, 500) for _ in range(2))
    assert first == second
    assert first != draws(Sampler(seed=2**64 - 2), LOGITS, 500)


def test_a_sampler_that_accepted_the_tokens_goes_on_where_they_were_drawn() -> None:
    options = {"seed": 9, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
    whole = Sampler(**options)
    ids = draws(whole, LOGITS, 40)
    resumed = Sampler(**options)
    for token in ids[:25]:
        resumed.accept(token)
    assert draws(resumed, LOGITS, 15) == ids[25:]


def test_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    Sampler(seed=1, repetition_penalty=2, logit_bias={3: 5.0}).sample(logits)
    assert (logits == LOGITS).all()
