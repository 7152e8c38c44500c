"""Stock transformers, the reference of the parity tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM


@contextmanager
def not_compiled() -> Iterator[None]:
    """While a model of transformers loads: to compile its layers takes a minute."""
    # The variable is read when PyTorch's compiler is first imported, which may be during the load;
    # the stance holds where another test has imported it before.
    with (
        mock.patch.dict(os.environ, {"TORCHDYNAMO_DISABLE": "1"}),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def load(folder: Path) -> Any:
    """The model as anyone would load it, but not compiled."""
    with not_compiled():
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    """Logits `[N, T, vocab]` of the windows `ids` `[N, T]`."""
    # Another test may have imported them before, ready to be compiled.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        result: Tensor = model(ids).logits
    return result


def held_out_loss(logits_NTV: Tensor, ids_NT: Tensor, bos_id: int = 0) -> float:
    """Mean negative log-probability in float64 of every token that has to be predicted.

    Not those: each window's first token, and the one that begins a document behind another's end.
    """
    logprobs = torch.log_softmax(logits_NTV[:, :-1].double(), dim=-1)
    targets = ids_NT[:, 1:]
    return -float(logprobs.gather(-1, targets[:, :, None])[targets != bos_id].mean())
