"""A model that is looked at only, beside the one that learns: a teacher, or a reference."""

from __future__ import annotations

from typing import Any

from transformers import TrainingArguments

from trilobit.errors import RecipeError


def frozen(model: Any, args: TrainingArguments, what: str) -> Any:
    """The model, on the device where another one learns, without gradients.

    what: it is called, in the RecipeError where one process has several GPUs.
    """
    if args.n_gpu > 1:
        raise RecipeError(
            f"a {what} and several GPUs in one process do not go together; start a process for "
            "each: trilobit train --processes N"
        )
    return model.requires_grad_(False).eval().to(args.device)
