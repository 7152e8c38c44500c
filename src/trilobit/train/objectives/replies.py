"""Reply in a conversation: the tokens of the assistant's replies, for `kind = "sft"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trilobit.errors import RecipeError
from trilobit.formats.pooling import Pooling
from trilobit.model.config import ModelConfig
from trilobit.prompter import Prompter
from trilobit.text.tokenizer import Tokenizer
from trilobit.train.adapter import learner, start_of
from trilobit.train.data.replies import (
    Groups,
    HeldOutReplies,
    Replies,
    TrainingReplies,
    every_reply,
    padded,
    prepare,
)
from trilobit.train.objectives.tokens import TokenTrainer
from trilobit.train.recipes import Sft
from trilobit.train.trainer import RunMixin

# For a model that was never taught to chat. A line's end parts tokens, so that a reply has the same
# tokens where it is to be written and where it was written before.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}:\n{{ m.content | trim }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


class Supervised:
    """The model of a recipe, and the replies that it learns.

    Raises RecipeError, FormatError or UnsupportedModel when the model cannot be, before any text
    is read.
    """

    def __init__(self, recipe: Sft) -> None:
        self._recipe = recipe
        folder = recipe.start_folder()
        assert folder is not None
        self._start = start = start_of(recipe, folder, template=self._template)
        start.check_rows(recipe.weights)
        if recipe.data.window > self.config.max_position_embeddings:
            raise RecipeError(
                f"data.window is {recipe.data.window}, longer than the context of {folder}: "
                f"{self.config.max_position_embeddings}"
            )
        if start.tokenizer.eos_id is None:
            raise RecipeError(
                f"{folder}: start names no token that ends a reply; set eos_token_id in config.json"
            )
        self._eos_id = start.tokenizer.eos_id
        self._prompter = Prompter(
            name=str(folder),
            config=self.config,
            tokenizer=Tokenizer(start.tokenizer.data, str(folder)),
            chat_template=start.chat_template,
            add_bos=start.tokenizer.bos_id is not None,
            context=recipe.data.window,
        )
        self._replies: Replies | None = None

    # Of chats, where the model has none.
    _template: str | None = TEMPLATE
    # What the files hold.
    _groups: Groups = staticmethod(every_reply)
    # What is learned, in words, and of how many examples each consists.
    _what, _parts = "conversation", 1
    # Of models that are looked at only.
    frozen_parameters = 0

    @property
    def pooling(self) -> Pooling | None:
        """How a vector is made of a text, where that is learned."""
        return None

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self._start.config

    def prepare(self, folder: Path, *, begun: bool) -> str:
        """Make the examples in `folder`, or map them; what is there, in words."""
        self._replies = replies = prepare(
            self._recipe, folder, self._prompter, self._eos_id, begun=begun, groups=self._groups
        )
        parts = (len(replies.train), len(replies.held_out), replies.left_out)
        trained, held_out, left_out = (part // self._parts for part in parts)
        more = f" ({left_out:,} more too long)" if left_out else ""
        what = self._what if trained + held_out == 1 else f"{self._what}s"
        return (
            f"{trained + held_out:,} {what}: {trained:,} to train on, {held_out:,} held out{more}"
        )

    @property
    def window_tokens(self) -> float:
        """Tokens of an example, on the average."""
        assert self._replies is not None, "prepare comes first"
        return len(self._replies.train.tokens) / len(self._replies.train)

    def trainer(self, **life: Any) -> RunMixin:
        """A trainer of the model on what was prepared. life: arguments of the trainer."""
        recipe, replies = self._recipe, self._replies
        assert replies is not None, "prepare comes first"
        schedule = recipe.schedule
        return TokenTrainer(
            recipe=recipe,
            model=learner(recipe, self._start),
            processing_class=self._start.hugging_face_tokenizer(),
            data_collator=padded,
            train_dataset=TrainingReplies(
                replies.train, count=schedule.steps * schedule.batch_windows, seed=recipe.seed
            ),
            eval_dataset=HeldOutReplies(replies.held_out),
            **life,
        )
