"""RoPE's frequencies are torch's and transformers', to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trilobit.formats.hf.config import model_config
from trilobit.model.rope import frequencies
from trilobit.model.shapes import SHAPES, shape

# Of published models that are ternary, and of others that they come from.
THETAS = (1e4, 1e5, 1.5e5, 2.5e5, 5e5, 1e6, 1000042.0, 2e6, 5e6, 8e6, 1e7, 11158840.0, 1e8, 1e9)
HEADS = (64, 80, 96, 100, 112, 128, 160, 192, 256)
# torch's vectors, and how many of them it takes at a time: what is left over goes elsewhere.
_TOGETHER = 32

needs_vectors = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch without vectors has libm's"
)


def torch_frequencies(head_dim: int, theta: float) -> np.ndarray:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    padding = torch.zeros(-len(exponents) % _TOGETHER)
    return (1.0 / theta ** torch.cat([exponents, padding]))[: len(exponents)].numpy()


@needs_vectors
@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("head_dim", HEADS)
def test_frequencies_are_torchs_to_the_bit(head_dim: int, theta: float) -> None:
    assert (frequencies(head_dim, theta) == torch_frequencies(head_dim, theta)).all()


@needs_vectors
@pytest.mark.parametrize("name", SHAPES)
def test_every_published_shape_turns_as_in_torch(name: str) -> None:
    config = shape(name)
    found = frequencies(config.head_dim, config.rope_theta)
    assert (found == torch_frequencies(config.head_dim, config.rope_theta)).all()


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
STRETCHED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 8192},
    "yarn": {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 4096},
}


@needs_vectors
@pytest.mark.parametrize("kind", STRETCHED)
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6, 1000042.0])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_stretched_frequencies_are_transformers_to_the_bit(
    kind: str, theta: float, head_dim: int
) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 4 * head_dim,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": 32768,
        "rope_parameters": {**STRETCHED[kind], "rope_theta": theta},
    }
    stock = LlamaConfig(**sizes)
    wanted, _ = ROPE_INIT_FUNCTIONS[kind](stock, torch.device("cpu"))
    ours = model_config(stock.to_dict(), "config.json")
    assert (frequencies(head_dim, theta, ours.rope_scaling) == wanted.numpy()).all()
