"""What a server is told when it starts: which models, who may come in, how much may be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trilobit.engine.options import EngineOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that `trilobit serve` decides.

    models: name -> a file, a folder or a name, as for `LLM`; where a request names none, the first
    is meant, for a conversation the first that was made to chat. engine: how each of them is run.
    keys: one of them is needed for everything but `auth.OPEN`; none: nobody needs one. hosts: names
    that a request may be addressed to; None: any. origins: web pages of other servers that may ask.

    memory_bytes: of the whole process, at most; None: as much as its models want. queue: choices
    that wait beyond those that run. body_bytes, choices, embeddings: of one request, at
    most. sender_s: what a request may take to arrive. reader_s: how long a reader may take nothing.
    request_s: what an answer may take. keep_alive_s: pause of a stream after which a comment is
    sent. drain_s: what answers may still take when the server is told to stop. idle_unload_s:
    models that nobody asked for so long are closed; None: never. health_s: a step that takes longer
    is stuck. request_log: a file for all that is asked and answered; None: nothing is kept.
    billing_header: leave that line of agents in their prompts (see `anthropic.conversation`).
    """

    models: Mapping[str, str]
    engine: EngineOptions = field(default_factory=EngineOptions)
    keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    memory_bytes: int | None = None
    queue: int = 64
    body_bytes: int = 4 << 20
    choices: int = 128
    embeddings: int = 2048
    sender_s: float = 30.0
    reader_s: float = 60.0
    request_s: float = 3600.0
    keep_alive_s: float = 15.0
    drain_s: float = 30.0
    idle_unload_s: float | None = None
    health_s: float = 30.0
    request_log: Path | None = None
    billing_header: bool = False
    page: bool = True
    json_logs: bool = False
