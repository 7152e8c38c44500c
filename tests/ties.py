"""Our logits against stock transformers' where both round activations to int8.

Two float implementations of BitNet cannot agree everywhere. An activation that falls within float
rounding of the middle between two int8 codes gets one code here and the other there; from that
token on the two compute something different, and both are right. So the claim is split in two, and
each half is strict:

- where the codes are the same, logits differ by float32 rounding only (`ROUNDINGS`);
- where they are not, some inputs of stock's quantisers lie within `NEAR` of a step from the middle
  between two codes, and stock itself gives our logits once just these are moved to the other side.

`rounding_ties` finds those inputs or fails.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

# Of 2^-24, relative to the token's largest logit. A logit sums `hidden_size` products of numbers
# that went through some ten roundings each; measured are up to 18.
ROUNDINGS = 32

# In steps of the int8 codes, so of 1/127 of a token's largest activation. Some ten roundings of
# 2^-24 make 127 * 10 * 2^-24 = 8e-5 of a step. Behind the attention it is more: the exponential
# turns a score's absolute error into a relative one, and scores are of the order of ten.
NEAR, NEAR_ATTENTION = 1e-4, 1e-3

_MOST = 16  # ties of a token that are tried


class Tie(NamedTuple):
    """An input of a quantiser: the token, the norm whose output it is, the channel."""

    position: int
    site: int
    channel: int


class Near(NamedTuple):
    """How far a tie is from the middle, and the side (-1 or 1) it is rounded to."""

    tie: Tie
    distance: float  # of what `NEAR` or `NEAR_ATTENTION` allows
    side: int


class Stock:
    """Stock transformers. `sides` of a run moves inputs to a side of their middle.

    A site is what one activation quantiser of the model reads: a projection's input, after its own
    norm if it has one. Projections without share theirs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self._sides: dict[Tie, int] = {}
        self._near: list[Near] = []
        self._attention: set[int] = set()  # sites behind an attention
        sites = itertools.count()
        for layer in model.model.layers:
            attn, mlp = layer.self_attn, layer.mlp
            self._watch(sites, attn.q_proj, attn.k_proj, attn.v_proj)
            self._attention.add(self._watch(sites, attn.o_proj))
            self._watch(sites, mlp.gate_proj, mlp.up_proj)
            self._watch(sites, mlp.down_proj)

    def _watch(self, sites: Iterator[int], *projections: Any) -> int:
        shared = next(sites)
        for index, projection in enumerate(projections):
            norm = getattr(projection, "rms_norm", None)
            if norm is None:
                projection.register_forward_pre_hook(
                    lambda _, args, first=index == 0: self._move(shared, args[0], first)
                )
                continue
            site = shared if index == 0 else next(sites)
            norm.register_forward_hook(lambda _, __, out, site=site: self._move(site, out, True))
        return shared

    @torch.inference_mode()
    def logits(self, ids: list[int], sides: dict[Tie, int]) -> tuple[np.ndarray, list[Near]]:
        self._sides, self._near = sides, []
        return self.model(torch.tensor([ids])).logits[0].numpy(), self._near

    @torch.inference_mode()
    def greedy(self, ids: list[list[int]], count: int) -> list[list[int]]:
        self._sides = {}
        prompts = torch.tensor(ids)
        output = self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        return output[:, prompts.shape[1] :].tolist()

    def _move(self, site: int, x: torch.Tensor, first: bool) -> torch.Tensor:
        if x.shape[0] > 1:  # a batch is only for `greedy`
            return x
        x_TK = x[0].clone()
        t_T1 = 127 / x_TK.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        steps_TK = x_TK * t_T1
        middle_TK = torch.floor(steps_TK) + 0.5
        near = NEAR_ATTENTION if site in self._attention else NEAR
        for position, channel in ((steps_TK - middle_TK).abs() < near).nonzero().tolist():
            at = position, channel
            tie = Tie(position, site, channel)
            side = 1 if torch.round(steps_TK[at]) > middle_TK[at] else -1
            distance = abs(float(steps_TK[at] - middle_TK[at])) / near
            if first:
                self._near.append(Near(tie, distance, side))
            if tie in self._sides:
                x_TK[at] = (middle_TK[at] + self._sides[tie] * near) / t_T1[position, 0]
        return x_TK[None]


def roundings(ours: np.ndarray, stock: np.ndarray) -> np.ndarray:
    """Largest difference at each position, in 2^-24 of its largest logit."""
    return np.abs(ours - stock).max(axis=1) / np.abs(stock).max(axis=1) * 2**24


def rounding_ties(stock: Stock, ids: list[int], ours: np.ndarray) -> dict[Tie, int]:
    """The ties that must be rounded the other way for stock to give `ours`; fails without."""
    sides = _explain(stock, ids, ours, {})
    assert sides is not None, "logits differ, and no rounding tie explains it"
    return sides


def _explain(
    stock: Stock, ids: list[int], ours: np.ndarray, sides: dict[Tie, int]
) -> dict[Tie, int] | None:
    logits, near = stock.logits(ids, sides)
    wrong = roundings(ours, logits) > ROUNDINGS
    if not wrong.any():
        return sides
    part = int(wrong.argmax()) + 1
    for depth in (1, 2):
        found_one = False
        for trial in _flips(stock, ids[:part], ours[:part], sides, near, depth):
            found_one = True
            found = _explain(stock, ids, ours, trial)
            if found is not None:
                return found
            # It explained this token, but not those behind it: another one did.
        if found_one:
            return None
    trial = _descent(stock, ids[:part], ours[:part], sides, near)
    return None if trial is None else _explain(stock, ids, ours, trial)


def same_number(a: Near, b: Near) -> bool:
    """Whether two ties of a site are one number in two channels."""
    return a.distance == b.distance and a.tie[:2] == b.tie[:2]


def _open(near: list[Near], sides: dict[Tie, int], last: int) -> list[Near]:
    """What may still be moved: ties of the last token, then those before it, the nearest first."""
    open_ = [n for n in near if n.tie not in sides and n.tie.position <= last]
    return sorted(open_, key=lambda n: (n.tie.position < last, n.distance))


def _descent(
    stock: Stock, ids: list[int], ours: np.ndarray, sides: dict[Tie, int], near: list[Near]
) -> dict[Tie, int] | None:
    """`sides` with as many more as meet in one token; None where they explain nothing.

    What ties do to the logits adds up, nearly, so the way there is the one that brings stock
    nearer with every step.
    """
    last = len(ids) - 1

    def far(logits: np.ndarray) -> float:
        return float(np.linalg.norm(ours[last] - logits[last]))

    logits, _ = stock.logits(ids, sides)
    while roundings(ours, logits).max() > ROUNDINGS:
        trials = [{**sides, one.tie: -one.side} for one in _open(near, sides, last)[:_MOST]]
        runs = [(trial, *stock.logits(ids, trial)) for trial in trials]
        if not runs:
            return None
        nearest = min(runs, key=lambda run: far(run[1]))
        if far(nearest[1]) >= far(logits):
            return None
        sides, logits, near = nearest
    return sides


def _flips(
    stock: Stock,
    ids: list[int],
    ours: np.ndarray,
    sides: dict[Tie, int],
    near: list[Near],
    depth: int,
) -> Iterator[dict[Tie, int]]:
    """`sides` with up to `depth` more that reconcile all of `ids`, the likeliest first."""
    last = len(ids) - 1
    # Those of the last token first; one whose effect was too small to see may lie before it.
    open_ = _open(near, sides, last)
    for one in open_[:_MOST]:
        tie, distance, side = one
        # Heads that share keys and values hold equal numbers where a token sees itself only.
        alike = [n.tie for n in open_ if same_number(n, one)]
        # At a rounding error's distance it is uncertain which side the quantiser chose.
        for other in (-side, side) if distance < 0.1 else (-side,):
            trial = {**sides, **dict.fromkeys(alike, other)}
            logits, nearer = stock.logits(ids, trial)
            if roundings(ours, logits).max() <= ROUNDINGS:
                yield trial
            # Of an earlier token that is so near, stock may round one way in the whole text and the
            # other way in a part of it, whose products are of other sizes.
            elif depth > 1 and (tie.position == last or distance < 0.1):
                later = [n for n in nearer if n.tie.site > tie.site]
                yield from _flips(stock, ids, ours, trial, later, depth - 1)
