"""What a caller gives -> token ids, and sequences of them for an engine: checked here, once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import cast

from trilobit.engine.event import Completion
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.errors import ContextOverflow, RequestError
from trilobit.inputs import (
    Message,
    Prompt,
    TokenIds,
    checked_ids,
    checked_messages,
    is_items,
    is_several,
    not_in_vocabulary,
)
from trilobit.model.config import ModelConfig
from trilobit.sampling import NOTHING_SAID, SamplingParams
from trilobit.text.chat_template import leaves_bos_to_tokenizer, render
from trilobit.text.grammar import Grammar, Grammars
from trilobit.text.reasoning import Thoughts, is_begun, thinks
from trilobit.text.reply import Part, Reply
from trilobit.text.tokenizer import Tokenizer, without_tokenizer
from trilobit.text.tools import Toolbox, form_of, told

# A model that was never taught to chat continues the conversation as one text.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)
_MOST_COMPLETIONS = 1 << 10  # of one prompt
_TAIL = 12  # tokens, which hold the beginning of a thought at the end of a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompter:
    """The text side of a model.

    name: what the user calls it. context: tokens of prompt and output together. grammars: compiles
    them for the tokenizer, which a model without one has none of. sampling: what the model's makers
    say of that.
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    chat_template: str | None
    add_bos: bool
    context: int
    grammars: Grammars | None = None
    sampling: SamplingParams = NOTHING_SAID

    # ---- text and ids -------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the beginning-of-text token where the model wants one."""
        if not isinstance(text, str):
            raise RequestError(f"encode takes a text, not {type(text).__name__}")
        return self._with_bos(self._tokenizer().encode(text))

    def decode(self, token_ids: TokenIds) -> str:
        """Text of token ids, without special tokens."""
        ids = checked_ids(token_ids, self.config.vocab_size)
        return self._tokenizer().decode(ids)

    def chat_text(self, messages: Items[Message], toolbox: Toolbox | None = None) -> str:
        """A conversation as the template writes it, ready for the reply."""
        tokenizer = self._tokenizer()
        ends = [tokenizer.token(i) for i in self.config.eos_token_ids]
        begin = self.config.bos_token_id
        plain, tools = told(checked_messages(messages), toolbox, self.chat_template)
        return render(
            self.chat_template or _PLAIN_TEMPLATE,
            plain,
            tools=tools,
            bos_token=(tokenizer.token(begin) if begin is not None else None) or "",
            eos_token=next((end for end in ends if end), ""),
        )

    def chat_ids(
        self,
        messages: Items[Message],
        toolbox: Toolbox | None = None,
        *,
        thinking: bool | None = None,
    ) -> list[int]:
        """Token ids of a conversation, ready for the reply; toolbox: what may be called in it.

        thinking: whether to think first, where the template knows that.
        """
        plain, tools = told(checked_messages(messages), toolbox, self.chat_template)
        tokenizer = self._tokenizer()
        ends = [tokenizer.token(i) for i in self.config.eos_token_ids]
        begin = self.config.bos_token_id
        template = self.chat_template
        ids = tokenizer.encode_chat(
            template or _PLAIN_TEMPLATE,
            plain,
            bos_token=(tokenizer.token(begin) if begin is not None else None) or "",
            eos_token=next((end for end in ends if end), ""),
            tools=tools,
            thinking=thinking,
            most_tokens=self.context,
        )
        leaves_bos = template is None or leaves_bos_to_tokenizer(template)
        return self.ids(self._with_bos(ids) if leaves_bos else ids)

    @property
    def thinks(self) -> bool:
        """Whether the model was taught to think before it answers."""
        return thinks(self.chat_template)

    def answering(
        self, ids: list[int], params: SamplingParams, toolbox: Toolbox | None
    ) -> SamplingParams:
        """Parameters of an answer to a conversation, where something must be called."""
        if toolbox is None or not toolbox.must_call:
            return params
        if params.constraint is not None:
            raise RequestError(
                f"tool_choice asks for a call, and {params.constraint.kind} for something else"
            )
        grammar = toolbox.grammar(
            form_of(self.chat_template), thoughts=self.thinks, begun=self._is_thinking(ids)
        )
        return replace(params, grammar=grammar)

    def reply(
        self,
        ids: list[int],
        toolbox: Toolbox | None = None,
        *,
        reasoning: bool = False,
        salt: str = "",
    ) -> Reply:
        """What parts the answer to a conversation of these ids.

        reasoning: tell thoughts apart. salt: see `Reply`.
        """
        calls = toolbox is not None and toolbox.is_open
        # A call that is only thought of is none.
        apart = self.thinks and (reasoning or calls)
        return Reply(
            thoughts=Thoughts(begun=self._is_thinking(ids)) if apart else None,
            form=form_of(self.chat_template) if calls else None,
            names=toolbox.names if toolbox is not None else (),
            salt=salt,
        )

    def parted(
        self,
        ids: list[int],
        done: Completion,
        toolbox: Toolbox | None = None,
        *,
        reasoning: bool = False,
    ) -> Completion:
        """What came of a conversation of these ids, in its parts."""
        if not reasoning and toolbox is None:
            return done
        salt = f"{done.seed}/{blake2b(repr(ids).encode()).hexdigest()}"
        reply = self.reply(ids, toolbox, reasoning=reasoning, salt=salt)
        part = Part.joined((reply.add(done.text), reply.finish()))
        return replace(done, text=part.text, tool_calls=part.calls, reasoning=part.thought)

    def _is_thinking(self, ids: list[int]) -> bool:
        return is_begun(self._tokenizer().decode(ids[-_TAIL:]))

    def ids(self, prompt: Prompt, *, beyond: int = 0) -> list[int]:
        """Token ids of a prompt of any form, which fit the context and `beyond` tokens more."""
        ids: TokenIds
        most = self.context + beyond
        if isinstance(prompt, str):
            ids = self._with_bos(self._tokenizer().encode(prompt, most_tokens=self.context))
        else:
            ids = prompt
        if not is_items(ids):
            kind = type(ids).__name__
            raise RequestError(f"a prompt is a text or a list of token ids, not {kind}")
        checked = checked_ids(ids, self.config.vocab_size)
        if not checked:
            raise RequestError("the prompt is empty; give at least one token")
        if len(checked) > most:
            remedy = " or raise context" if self.context < self._longest_context else ""
            raise ContextOverflow(
                f"the prompt has {len(checked)} tokens, the context {self.context}; shorten the "
                f"prompt{remedy}"
            )
        return checked

    def several_ids(self, prompts: Prompt | Items[Prompt], *, beyond: int = 0) -> list[list[int]]:
        """Of one prompt, or of several."""
        several = cast(Items[Prompt], prompts) if is_several(prompts) else [cast(Prompt, prompts)]
        return [self.ids(prompt, beyond=beyond) for prompt in several]

    def several_chats(
        self, messages: Items[Message] | Items[Items[Message]], toolbox: Toolbox | None = None
    ) -> list[list[int]]:
        """Of one conversation, or of several."""
        if is_items(messages) and messages and is_items(messages[0]):
            several = cast(Items[Items[Message]], messages)
            return [self.chat_ids(one, toolbox) for one in several]
        return [self.chat_ids(cast(Items[Message], messages), toolbox)]

    # ---- sequences ----------------------------------------------------------------------------

    def sequences(
        self,
        prompts: Items[list[int]],
        params: SamplingParams | Items[SamplingParams] | None,
        *,
        n: int = 1,
        salt: bytes = b"",
    ) -> list[list[Sequence]]:
        """For each prompt `n` sequences; the first of them has the others as its followers.

        Of several with a seed, each has the next one's, so that their texts differ.
        """
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= _MOST_COMPLETIONS:
            raise RequestError(f"n is {n!r:.40}; expected an integer from 1 to {_MOST_COMPLETIONS}")
        made = []
        for ids, own in zip(prompts, self.params(params, len(prompts)), strict=True):
            if len(ids) >= self.context:
                raise ContextOverflow(
                    f"the prompt has {len(ids)} tokens and fills the context of {self.context}; "
                    "shorten the prompt"
                )
            sequences = [self._sequence(ids, own, number, salt) for number in range(n)]
            sequences[0].followers = sequences[1:]
            made.append(sequences)
        return made

    def _sequence(
        self, ids: list[int], params: SamplingParams, number: int, salt: bytes
    ) -> Sequence:
        ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            ends |= frozenset(self.config.eos_token_ids)
        drawn = secrets.randbits(64) if params.seed is None else params.seed + number
        limit = min(len(ids) + params.max_tokens, self.context)
        grammar = self.grammar(params)
        # A grammar offers its end as soon as it may come: who ignores that one waits for the last.
        ignored = params.ignore_eos and grammar is not None
        eos = frozenset(self.config.eos_token_ids if ignored else ())
        request = Request(
            prompt=ids,
            params=params,
            seed=drawn % (1 << 64),
            end_ids=ends,
            limit=limit,
            salt=salt,
            grammar=grammar,
            min_tokens=limit if ignored else params.min_tokens,
            held_ids=ends | eos if ignored or params.min_tokens else frozenset(),
        )
        return Sequence(request, tokenizer=self.tokenizer)

    def grammar(self, params: SamplingParams) -> Grammar | None:
        """What the output must be, compiled: the first time that may take seconds."""
        if params.constraint is None:
            return None
        self._tokenizer()
        assert self.grammars is not None
        return self.grammars.compile(params.constraint)

    def params(
        self, params: SamplingParams | Items[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        """The parameters of each of `count` prompts, all said; RequestError if they cannot be."""
        given = SamplingParams() if params is None else params
        several = (
            [*cast(Items[SamplingParams], given)]
            if is_items(given)
            else [cast(SamplingParams, given)] * count
        )
        for one in several:
            if not isinstance(one, SamplingParams):
                raise RequestError(
                    f"params is of type {type(given).__name__}; expected one SamplingParams for "
                    "all, or a list of one for each prompt"
                )
        if len(several) != count:
            raise RequestError(f"params are {len(several)}, prompts {count}; give one for each")
        settled = {one: one.settled(self.sampling) for one in set(several)}
        for one in settled.values():
            self._check(one)
        return [settled[one] for one in several]

    def _check(self, params: SamplingParams) -> None:
        if params.stop:
            self._tokenizer()  # without text there is nothing to find them in
        size = self.config.vocab_size
        for what, ids in (
            ("logit_bias", list(dict(params.logit_bias))),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for i in ids:
                if not 0 <= i < size:
                    raise RequestError(f"{what}: {not_in_vocabulary(i, size)}")

    # ---- parts --------------------------------------------------------------------------------

    @property
    def _longest_context(self) -> int:
        return self.config.max_position_embeddings

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.config.bos_token_id
        return [bos, *ids] if self.add_bos and bos is not None and ids[:1] != [bos] else ids

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(without_tokenizer(self.name, "give token ids, or "))
        return self.tokenizer
