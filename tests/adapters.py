"""LoRA adapters as peft lays them out, of random numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    folder: Path,
    config: ModelConfig,
    *,
    rank: int = 5,
    targets: tuple[str, ...] = ALL,
    size: float = 0.3,
) -> Path:
    """An adapter of every matrix that ends in one of `targets`; its rank fits no vector.

    size: of what it adds, to what the matrices give.
    """
    random = np.random.default_rng(3)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for name, (rows, columns) in tensor_names.projections(config, layer).items():
            if name.endswith(targets):
                down = random.standard_normal((rank, columns)) * columns**-0.5
                up = random.standard_normal((rows, rank)) * size * rank**-0.5
                prefix = f"base_model.model.{name}"
                tensors[f"{prefix}.lora_A.weight"] = down.astype(np.float32)
                tensors[f"{prefix}.lora_B.weight"] = up.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
