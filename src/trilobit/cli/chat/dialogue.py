"""The chat itself: messages and commands in, replies and notes out.

Replies, and what a command was asked for, go to stdout; everything else is a note on stderr.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from contextlib import nullcontext

from trilobit.cli.chat import settings
from trilobit.cli.chat.conversation import Conversation, Exchange, Message, load
from trilobit.cli.chat.quoted import unquoted
from trilobit.cli.chat.reply import Reply
from trilobit.cli.chat.tally import Tally
from trilobit.cli.chat.waiting import Waiting
from trilobit.cli.continuation import show
from trilobit.cli.options import for_people
from trilobit.cli.signals import on_signal
from trilobit.cli.terminal import NO_MEMORY, note
from trilobit.cli.units import count
from trilobit.console import has_terminal
from trilobit.engine.event import Completion
from trilobit.errors import ContextOverflow, RequestError, TrilobitError
from trilobit.llm import LLM
from trilobit.machine import peak_rss_mb
from trilobit.sampling import SamplingParams
from trilobit.stream import Stream
from trilobit.text.utf8 import utf8

# name -> its argument, what /help says
COMMANDS = {
    "/help": ("", "this list"),
    "/retry": ("", "another answer to the last message"),
    "/edit": ("[TEXT]", "say something else in place of the last message"),
    "/reset": ("", "forget the conversation, but not the system message"),
    "/system": ("[TEXT]", "show the system message, or set it (- for none) and talk on"),
    "/set": ("[NAME VALUE]", "show how tokens are chosen, or change it"),
    "/model": ("[NAME]", "show the model, or go on with another one"),
    "/save": ("[FILE]", "write the conversation as JSON; without FILE, where it was last"),
    "/load": ("FILE", "go on with a saved conversation"),
    "/stats": ("", "tokens, speed, context, memory"),
    "/exit": ("", "leave"),
}

NO_CHAT = "this model was not made for conversations: it continues your text, not answers it"

# Old exchanges make way so that a reply has this part of the context, if it may get so long.
_REPLY_SHARE = 4


class Dialogue:
    """One user and one model, message by message.

    read: gives the next message, which may be begun with a text; raises EOFError at the end.
    open_model: opens a model by name.
    interactive: people are there: Ctrl-C stops no more than a reply, and keys are explained.
    stats: show the speed after each reply, if interactive. plain: show replies as they are.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        read: Callable[[str], str],
        open_model: Callable[[str], LLM],
        *,
        system: str | None,
        interactive: bool,
        stats: bool,
        plain: bool,
    ) -> None:
        self._llm, self._params, self._read = llm, params, read
        self._open_model = open_model
        self._interactive, self._stats = interactive, stats
        self._plain = plain or not interactive
        self._conversation = Conversation(system=system or None)
        self._last: Completion | None = None
        self._tally = Tally()
        self._used: int | None = 0  # tokens of the conversation; None: not counted yet
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/retry": self._retry,
            "/edit": self._edit,
            "/reset": self._reset,
            "/system": self._system,
            "/set": self._set,
            "/model": self._model,
            "/save": self._save,
            "/load": self._load,
            "/stats": self._show_stats,
            "/exit": self._exit,
        }

    def run(self, first: str = "") -> bool:
        """Take messages until there are no more; False when one of them failed.

        first: a message that is there already.
        """
        good = True
        while True:
            try:
                said, first = first or self._read(""), ""
                self._take(said)
            except EOFError:
                return good
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                show("\n")  # the terminal has just written ^C
                note("stopped; nothing has changed")
            except TrilobitError as error:
                good = False
                note(f"error: {error}", dim=False)
            except MemoryError:
                good = False
                note(f"error: {NO_MEMORY}; nothing has changed", dim=False)

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        inner = unquoted(text)
        if inner is not None:
            if inner:
                self._say(inner)
        elif text.startswith("//"):
            self._say(text[1:])
        elif text.startswith("/"):
            name, *rest = text.split(maxsplit=1)
            self._obey(name, rest[0].strip() if rest else "")
        else:
            self._say(text)

    # ---- replies ------------------------------------------------------------------------------

    def _say(self, said: str) -> None:
        """Send a message, show the reply as it comes, keep both."""
        utf8(said, "the message")
        conversation = self._conversation
        start = conversation.first_sent(said, self._fits)
        # One seed gives the same chat again, but not the same dice for every reply.
        params = self._settled()
        if params.seed is not None:
            params = dataclasses.replace(params, seed=(params.seed + self._tally.replies) % 2**64)
        try:
            stream = self._llm.stream_chat(conversation.messages(start, said), params)
        except ContextOverflow as error:
            raise ContextOverflow(f"{error}; the message was not kept") from None
        if start > conversation.left_out:
            oldest = count(start, "exchange")
            note(f"the context is full: the model no longer sees the oldest {oldest}")
            conversation.left_out = start
        # Closing the stream tears no step of the engine, so that its cache stays.
        stop = on_signal(signal.SIGINT, stream.close) if self._interactive else nullcontext()
        with stream, stop:
            self._show(stream)
            self._keep(said, stream.completion)

    def _show(self, stream: Stream) -> None:
        """Show a reply as it comes."""
        reply = Reply(plain=self._plain)
        waits = self._interactive and has_terminal()
        with Waiting(stream) if waits else nullcontext() as waiting:
            for text in stream:
                if waiting is not None:
                    waiting.stop()
                reply.add(text)
        reply.finish()
        if not stream.completion.text.endswith("\n"):
            show("\n")

    def _again(self, said: str) -> None:
        """Say something in place of the last message, which is kept if nothing comes of it."""
        exchanges, left_out = self._conversation.exchanges, self._conversation.left_out
        last = exchanges.pop()
        kept = len(exchanges)
        self._conversation.left_out = min(left_out, kept)
        try:
            self._say(said)
        finally:
            if len(exchanges) == kept:
                exchanges.append(last)
                self._conversation.left_out = left_out

    def _last_exchange(self, name: str) -> Exchange:
        if not self._conversation.exchanges:
            raise RequestError(f"{name}: nothing has been said yet")
        return self._conversation.exchanges[-1]

    def _keep(self, said: str, completion: Completion) -> None:
        stopped = completion.finish_reason == "aborted"
        if stopped and not completion.text:
            note("stopped before the reply began; the message was not kept")
            return
        self._last = completion
        self._tally.add(completion)
        self._conversation.exchanges.append(Exchange(said, completion.text))
        self._used = completion.prompt_tokens + len(completion.token_ids)
        remarks = []
        if self._interactive and self._stats:
            rate = completion.decode_tokens_per_s
            remarks.append(f"{count(len(completion.token_ids), 'token')}, {rate:.1f} tokens/s")
        if stopped:
            remarks.append("stopped")
        elif completion.finish_reason == "length":
            asked_for = len(completion.token_ids) >= self._params.max_tokens
            full = self._used >= self._llm.context and not asked_for
            remarks.append("cut: the context is full" if full else "cut at --max-tokens")
        elif not completion.text:
            remarks.append("an empty reply")
        if remarks:
            note(" | ".join(remarks))

    def _fits(self, messages: list[Message]) -> bool:
        """Whether messages leave room for a reply."""
        room = min(self._params.max_tokens, self._llm.context // _REPLY_SHARE)
        try:
            return len(self._llm.chat_ids(messages)) + room <= self._llm.context
        except ContextOverflow:
            return False

    def _settled(self) -> SamplingParams:
        """What was said of how tokens are chosen; of the rest, what the model says."""
        return for_people(self._params, self._llm.sampling)

    # ---- commands -----------------------------------------------------------------------------

    def _obey(self, name: str, argument: str) -> None:
        if name not in self._commands:
            raise RequestError(f"unknown command {name}; see /help, or begin a message with //")
        usage, _ = COMMANDS[name]
        if argument and not usage:
            raise RequestError(f"{name} takes nothing after it; begin a message with //")
        self._commands[name](argument)

    def _help(self, _: str) -> None:
        rows = [(f"{name} {usage}", text) for name, (usage, text) in COMMANDS.items()]
        rows.append(("//TEXT", "send a text that begins with /"))
        rows.append(('"""', "begin and end a message of several lines"))
        if self._interactive:
            from trilobit.cli.chat.keyboard import HINTS

            rows += HINTS
        for left, right in rows:
            print(f"{left:<22} {right}")

    def _retry(self, _: str) -> None:
        self._again(self._last_exchange("/retry").said)

    def _edit(self, text: str) -> None:
        last = self._last_exchange("/edit").said
        if not text:
            if not self._interactive:
                raise RequestError("/edit needs a text, where there is no keyboard")
            text = self._read(last)
        inner = unquoted(text)
        text = text if inner is None else inner
        if text.strip():
            self._again(text)
        else:
            note("nothing has changed")

    def _set(self, text: str) -> None:
        if not text:
            show(settings.table(self._settled()))
            return
        name, _, value = text.partition(" ")
        if not value.strip():
            raise RequestError(f"/set {name[:40]} needs a value; /set alone shows all")
        self._params = settings.changed(self._params, name, value.strip())
        note(f"{name} is {value.strip()[:40]}")

    def _model(self, name: str) -> None:
        if not name:
            show(f"{self._llm.path.stem}\n")
            return
        llm = self._open_model(name)
        try:
            llm.encode("")  # one without a tokenizer fails here, and the old one stays
        except BaseException:
            llm.close()
            raise
        self._llm.close()
        self._llm, self._used = llm, None
        self._conversation.left_out = 0
        note(f"{llm.path.stem}: context {llm.context} tokens; the conversation goes on")
        if not llm.has_chat_template:
            note(NO_CHAT)

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._used = 0
        note("a new conversation")

    def _system(self, text: str) -> None:
        if text:
            utf8(text, "/system")
            self._conversation.system = None if text == "-" else text
            self._used = None
            note("set; the conversation goes on under it, /reset begins a new one")
        else:
            show(f"{self._conversation.system or 'no system message'}\n")

    def _save(self, name: str) -> None:
        place = name or self._conversation.file
        if place is None:
            raise RequestError("/save needs the name of a file")
        path = self._conversation.save(place)
        note(f"saved {count(len(self._conversation.exchanges), 'exchange')} as {path}")

    def _load(self, name: str) -> None:
        if not name:
            raise RequestError("/load needs the name of a file")
        self._conversation = load(name)
        self._used = None
        exchanges = self._conversation.exchanges
        if exchanges:
            show(f"> {exchanges[-1].said}\n")
            reply = Reply(plain=self._plain)
            reply.add(exchanges[-1].answered)
            reply.finish()
            show("\n")
        note(f"loaded {count(len(exchanges), 'exchange')} from {self._conversation.file}")

    def _show_stats(self, _: str) -> None:
        print(f"replies       {self._tally.replies}, seed {self._params.seed}")
        if self._last:
            last = Tally()
            last.add(self._last)
            print(f"last reply    {last}\nall replies   {self._tally}")
        used = "counted at the next reply" if self._used is None else count(self._used, "token")
        print(f"context       {used}, {self._llm.context} at most")
        if self._conversation.left_out:
            print(f"not sent      the oldest {count(self._conversation.left_out, 'exchange')}")
        print(f"peak memory   {peak_rss_mb():.0f} MB")

    def _exit(self, _: str) -> None:
        raise EOFError
