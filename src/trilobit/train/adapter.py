"""LoRA on a frozen ternary model, through peft: what is learned is added beside its matrices.

An adapter gets what a matrix is given before it is quantised. In a BitNet that is behind a norm,
and it must be: raw activations differ by orders of magnitude from token to token.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from trilobit.formats.adapter import BASE, WEIGHTS
from trilobit.formats.safetensors import Declared, SafetensorsWriter
from trilobit.train.base import Base
from trilobit.train.export import save_tokenizer
from trilobit.train.recipes import Pretrain, Recipe
from trilobit.train.start import Start


def start_of(recipe: Recipe, folder: Path, template: str | None = None) -> Start:
    """What a recipe begins with: a model that learns, or one that an adapter learns beside."""
    if recipe.adapter is None:
        return Start(folder, template=template)
    return Base(folder, template=template)


def learner(recipe: Recipe, start: Start) -> Any:
    """The model that a recipe's training changes, or peft's around a frozen one."""
    hadamard = isinstance(recipe, Pretrain) and recipe.hadamard
    model = start.model(recipe.weights, hadamard=hadamard)
    if recipe.adapter is None:
        return model
    from peft import LoraConfig, get_peft_model

    assert isinstance(start, Base)
    shape = recipe.adapter
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=list(shape.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for a property by its older name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted: Any = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(start.folder)
    adapted.base_digest = start.digest
    return adapted


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """The adapter of a model that `learner` gave, as peft lays it out, with the tokenizer.

    Its weights say in their metadata which model they are of.
    """
    # Not "auto": peft would look on the Hub for what the embedding was.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
    weights = folder / WEIGHTS
    tensors = dict(sorted(load_file(weights).items()))
    declared: list[Declared] = [(name, "F32", array.shape) for name, array in tensors.items()]
    # Not by the public library, which writes metadata in an order that changes.
    with SafetensorsWriter(weights, declared, {"format": "pt", BASE: model.base_digest}) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    save_tokenizer(tokenizer, folder)
