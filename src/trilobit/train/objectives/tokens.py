"""What learns tokens, and is measured by the mean over them."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import Trainer

from trilobit.train.trainer import RunMixin


class TokenTrainer(RunMixin, Trainer):
    """Its held-out loss is the mean over tokens, not over examples, of which some count fewer.

    eval_dataset: has `counted_tokens`, those of all its examples that are to be predicted.
    """

    @property
    def guessing_loss(self) -> float:
        """The loss of guessing evenly."""
        ours: Any = self.model
        return math.log(ours.config.vocab_size)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch; when evaluating, its share of the mean over all tokens."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        examples: Any = self.eval_dataset
        share = len(inputs["input_ids"]) * examples.counted_tokens / len(examples)
        # The GPUs of one process share the batch, and the Trainer takes the mean of what they say.
        outputs = model(**inputs, num_items_in_batch=share / max(self.args.n_gpu, 1))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]
