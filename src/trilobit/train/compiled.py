"""torch.compile for the layers of a model: what is small in them becomes one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers.modeling_layers import GradientCheckpointingLayer

from trilobit.errors import RecipeError


def compile_layers(model: Any, *, plain_attention: bool = False) -> None:
    """Compile each decoder layer of a transformers model, which is quicker than all of them.

    And its loss, whose half a dozen passes over the logits become two.
    plain_attention: two products and a softmax between them, which keep all of a layer's weights
        of attention. On a CPU that multiplies bfloat16 they are quicker than torch's own attention.
    Raises RecipeError when there is no layer, or no compiler.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise RecipeError(f"compile: {type(model).__name__} has no layers to compile; leave it out")
    if not any(p.is_cuda for p in model.parameters()):
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise RecipeError(
                "compile needs a C++ compiler: install g++ or clang, or leave it out"
            ) from None
    for layer in layers:
        layer.compile(dynamic=False)
    if plain_attention:
        model.set_attn_implementation("eager")
    model.loss_function = torch.compile(model.loss_function, dynamic=False)
