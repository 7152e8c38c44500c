"""SamplingParams takes what it documents and refuses the rest in one line."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from trilobit import RequestError, SamplingParams


def test_defaults_are_in_range() -> None:
    assert SamplingParams().max_tokens == 256


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "9"),
        ("max_tokens", True),
        ("max_tokens", None),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", False),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("frequency_penalty", 101),
        ("presence_penalty", math.nan),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("seed", True),
        ("stop", ""),
        ("stop", ["x", ""]),
        ("stop", [1]),
        ("stop", 1),
        ("stop", None),
        ("stop_token_ids", ["1"]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [1.0]),
        ("stop_token_ids", 5),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", {True: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: 1e31}),
        ("logit_bias", {1: "much"}),
        ("logit_bias", [1, 2]),
        ("logit_bias", None),
        ("logprobs", -1),
        ("logprobs", 101),
        ("logprobs", True),
        ("ignore_eos", 1),
        ("stop_token_ids", itertools.repeat(5)),
        ("stop", itertools.repeat("x")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name}") as caught:
        SamplingParams(**{name: value})
    assert "\n" not in str(caught.value)


def test_numpy_numbers_become_pythons() -> None:
    params = SamplingParams(
        max_tokens=np.int64(5),
        top_k=np.uint8(7),
        temperature=np.float32(0.5),
        stop_token_ids=np.array([3, 4]),
        logit_bias={np.int32(9): np.float32(-1.5)},
        seed=np.uint64(2**64 - 1),
    )
    assert type(params.max_tokens) is type(params.top_k) is type(params.seed) is int
    assert (params.max_tokens, params.top_k, params.seed) == (5, 7, 2**64 - 1)
    assert type(params.temperature) is float
    assert params.stop_token_ids == (3, 4)
    assert params.logit_bias == ((9, -1.5),)


def test_one_stop_text_is_a_list_of_one() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=iter(["a", "b"])).stop == ("a", "b")  # type: ignore[arg-type]


def test_a_bias_of_minus_infinity_forbids() -> None:
    assert SamplingParams(logit_bias={0: -math.inf}).logit_bias == ((0, -math.inf),)


def test_later_changes_of_the_callers_objects_change_nothing() -> None:
    bias, stop, ids = {1: 2.0}, ["a"], [1]
    params = SamplingParams(logit_bias=bias, stop=stop, stop_token_ids=ids)
    bias[5], stop[0], ids[0] = math.nan, "", -1
    assert params.logit_bias == ((1, 2.0),)
    assert (params.stop, params.stop_token_ids) == (("a",), (1,))


def test_parameters_are_values() -> None:
    """Equal ones have one hash, in whatever form and order they were given."""
    first = SamplingParams(stop=["a"], stop_token_ids=[3], logit_bias={2: 1, 1: -math.inf})
    again = SamplingParams(stop="a", stop_token_ids=(3,), logit_bias=((1, -math.inf), (2, 1.0)))
    assert first == again
    assert len({first, again, SamplingParams()}) == 2
    assert dataclasses.replace(first, seed=1) == dataclasses.replace(again, seed=1) != first
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.seed = 3  # type: ignore[misc]


def test_an_error_shows_no_more_than_a_little_of_a_value() -> None:
    for name in ("max_tokens", "temperature", "seed", "logit_bias", "stop_token_ids"):
        with pytest.raises(RequestError) as caught:
            SamplingParams(**{name: ["x" * 10_000] * 10_000})  # type: ignore[arg-type]
        assert len(str(caught.value)) < 300


def test_stop_strings_are_bounded_in_number_and_length() -> None:
    assert len(SamplingParams(stop=["a"] * 256).stop) == 256
    for stop in (["a"] * 1_000_000, "a" * 20_001, ["a" * 10_001] * 2):
        with pytest.raises(RequestError, match=r"^stop: .* at most 256 of 20,000 together"):
            SamplingParams(stop=stop)


def test_what_a_request_leaves_open_is_the_models_then_the_callers_then_ours() -> None:
    asked = SamplingParams(temperature=0, max_tokens=3)
    model = SamplingParams(temperature=0.6, top_p=0.9)
    caller = SamplingParams(top_p=0.5, top_k=40)
    wanted = {"temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0, "repetition_penalty": 1}
    settled = asked.settled(model, caller)
    assert (settled.said, settled.max_tokens) == (wanted, 3)
    assert settled.settled(caller) is settled
