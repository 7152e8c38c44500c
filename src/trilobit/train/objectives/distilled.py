"""Continue text as a teacher does, which tells every token's probability: `kind = "distill"`.

The loss is `(1 - a) CE(text) + a T² KL(teacher ‖ student)`, means over the tokens of a batch, with
both models' logits divided by T. Source: Hinton et al., arXiv 1503.02531, section 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from trilobit.errors import RecipeError
from trilobit.model.config import ModelConfig
from trilobit.train.data.tokens import GivenTokenizer
from trilobit.train.objectives.causal import Causal, CausalTrainer
from trilobit.train.objectives.frozen import frozen
from trilobit.train.recipes import Distill
from trilobit.train.start import Start


class Distilled(Causal):
    """The student of a recipe, its teacher, and the windows that they see."""

    def __init__(self, recipe: Distill) -> None:
        self._teacher = Start(recipe.teacher_folder(), what="teacher")
        self._distill = recipe
        self.frozen_parameters = self._teacher.config.parameters
        super().__init__(recipe)
        if recipe.data.window > self._teacher.config.max_position_embeddings:
            raise RecipeError(
                f"data.window is {recipe.data.window}, longer than the context of "
                f"{self._teacher.folder}: {self._teacher.config.max_position_embeddings}"
            )
        mine, theirs = self._start, self._teacher
        if mine and (
            mine.tokenizer != theirs.tokenizer or mine.config.vocab_size != theirs.config.vocab_size
        ):
            raise RecipeError(
                f"{theirs.folder}: the teacher has another tokenizer than {mine.folder}, and they "
                "must see the same tokens; take a teacher and a start of one family"
            )

    @property
    def config(self) -> ModelConfig:
        """The student's shape; a new one has the teacher's vocabulary."""
        if self._start or self._recipe.model is None:
            return super().config
        return self._recipe.model.config(self._teacher.config.vocab_size)

    @property
    def _given(self) -> GivenTokenizer | None:
        return self._teacher.tokenizer

    def _tokenizer(self) -> Any:
        return self._teacher.hugging_face_tokenizer()

    def _vocab_size(self, tokenizer: Any) -> int:
        return self._teacher.config.vocab_size  # logits side by side, even of rows without a token

    def _student(self, start: Start) -> Any:
        recipe = self._distill
        return start.model(recipe.weights, sub_norms=recipe.sub_norms, hadamard=recipe.hadamard)

    def _trainer(self, **arguments: Any) -> DistillTrainer:
        return DistillTrainer(
            teacher=self._teacher.model("as it is"),
            share=self._distill.teacher_share,
            temperature=self._distill.temperature,
            **arguments,
        )


class DistillTrainer(CausalTrainer):
    """While it trains, its loss is the teacher's too; held-out text is measured without it."""

    def __init__(self, *, teacher: Any, share: float, temperature: float, **rest: Any) -> None:
        super().__init__(**rest)
        self._teacher = frozen(teacher, self.args, "teacher")
        self._share, self._temperature = share, temperature

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Both losses of a batch; when evaluating, that of the text alone."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        of_text, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        with torch.no_grad():
            seen = {name: value for name, value in inputs.items() if name != "labels"}
            taught = self._teacher(**seen).logits
        apart = divergence(outputs["logits"], taught, labels, self._temperature) / count
        if self.args.average_tokens_across_devices:  # as the Trainer does with the text's
            apart = apart * self.accelerator.num_processes
        loss = (1 - self._share) * of_text + self._share * apart
        return (loss, outputs) if return_outputs else loss


def divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T² times the sum of KL(teacher ‖ student) over the tokens that are to be predicted.

    student, teacher: logits `[N, T, vocab]`. labels: `[N, T - 1]`, of the tokens behind the first;
    -100 where none counts.
    """
    counted = labels != -100
    mine, theirs = (
        log_softmax(logits[:, :-1][counted].float() / temperature, dim=-1)
        for logits in (student, teacher)
    )
    return temperature**2 * kl_div(mine, theirs, reduction="sum", log_target=True)
