"""How a ternary model fares, layer by layer: what its codes are, how many flip, what flows in.

Measured while the held-out text is evaluated, so that training steps lose no time by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trilobit.nn import BitLinear, bit_linears

HEALTH = "health.jsonl"  # in a run's folder: a line an evaluation


class Health:
    """The BitLinears of one model, looked at again and again."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = dict(bit_linears(model))
        self._codes: dict[str, Tensor] = {}
        self._inputs: dict[str, tuple[float, float]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at what flows into every layer in its first forward pass meanwhile."""
        self._inputs.clear()
        hooks = [
            layer.register_forward_pre_hook(self._watcher(name))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def by_layer(self) -> dict[str, dict[str, float | None]]:
        """Of every layer, by its name:

        minus, zero, plus: shares of the weights' codes. scale: what multiplies them.
        flips: share of codes that are others than at the last look; None at the first.
        absmax: largest input. density: share of the inputs' codes that are not 0. None where
        nothing was watched.
        """
        return {name: self._of(name, layer) for name, layer in self._layers.items()}

    def help(self) -> None:
        """Give the parts of a model in shards that `by_layer` asks for in another process."""
        for layer in self._layers.values():
            layer.codes()

    def _of(self, name: str, layer: BitLinear) -> dict[str, float | None]:
        codes, scale = layer.codes()
        before = self._codes.get(name)
        self._codes[name] = codes
        flips = None if before is None else float((codes != before).float().mean())
        top, density = self._inputs.get(name, (None, None))
        shares = {
            key: float((codes == code).float().mean())
            for key, code in (("minus", -1), ("zero", 0), ("plus", 1))
        }
        numbers = {
            **shares,
            "scale": float(scale),
            "flips": flips,
            "absmax": top,
            "density": density,
        }
        return {key: x if x is None else float(f"{x:.4g}") for key, x in numbers.items()}

    def _watcher(self, name: str) -> Any:
        def watch(layer: BitLinear, given: tuple[Tensor, ...]) -> None:
            if name not in self._inputs:
                # What is rounded is what comes out of the layer's own norm, if it has one.
                x = given[0] if layer.rms_norm is None else layer.rms_norm(given[0])
                codes, _ = layer.input_codes(given[0])
                top = float(x.detach().abs().max())
                self._inputs[name] = (top, float((codes != 0).float().mean()))

        return torch.no_grad()(watch)
