"""A log of requests and answers, for who asks for one: it holds their texts.

A line of JSON for each prompt: what the engine was asked and what it gave. Asked again
(`trilobit replay`), it gives the same to the byte, whatever the load, the threads or the processor
were, because nothing of them is in it. A log that is read is input like any other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilobit.engine.event import Completion
from trilobit.errors import FormatError, OutputError, RequestError
from trilobit.formats import json_text
from trilobit.sampling import SamplingParams

_FORMAT = "trilobit-requests-1"
_LONGEST_LINE = 64 << 20


class Record:
    """An open log, to which whole lines are appended."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            # Nobody else reads it: there are people's texts in it.
            self._file = os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from None

    def add(
        self,
        *,
        model: str,
        fingerprint: str,
        options: dict[str, Any],
        prompt: Items[int],
        params: SamplingParams,
        outputs: Items[Completion],
    ) -> None:
        """One prompt, with the seed of its first choice in params, and its choices.

        options: of the engine, those that change what comes out.
        """
        line = {
            "format": _FORMAT,
            "model": model,
            "fingerprint": fingerprint,
            "options": options,
            "prompt": list(prompt),
            "params": asdict(params),
            "outputs": [_output(one) for one in outputs],
        }
        self._file.write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One prompt of a log. line: from 1 on. outputs: as JSON has them, one for each choice."""

    line: int
    model: str
    fingerprint: str
    options: dict[str, Any]
    prompt: list[int]
    params: SamplingParams
    outputs: list[dict[str, Any]]

    def differing(self, again: Items[Completion]) -> list[int]:
        """The choices that came out otherwise. One that was left early counts as far as it came."""
        pairs = enumerate(zip(self.outputs, again, strict=True))
        return [number for number, (old, new) in pairs if not _is_same(old, new)]


def read(path: Path) -> Iterator[Recorded]:
    """The prompts of a log; FormatError for a line that is none."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                yield _recorded(f"{path}: line {number}", number, line)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the name") from None


def _recorded(where: str, number: int, line: bytes) -> Recorded:
    try:
        found = json_text.parse(line)
    except json_text.JSONFault:
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise FormatError(f"{where} is none of a request log, or was cut off; take it out")
    try:
        params = dict(found["params"])
        params["logit_bias"] = [tuple(pair) for pair in params.get("logit_bias", ())]
        recorded = Recorded(
            line=number,
            model=str(found["model"]),
            fingerprint=str(found["fingerprint"]),
            options={key: found["options"][key] for key in ("context", "kv_dtype")},
            prompt=list(found["prompt"]),
            params=SamplingParams(**params),
            outputs=[dict(one) for one in found["outputs"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        why = f" ({error})" if isinstance(error, RequestError) else ""
        raise FormatError(f"{where} holds no request that can be made{why}; take it out") from None
    if not recorded.outputs:
        raise FormatError(f"{where} holds a request without an answer; take it out")
    return recorded


def _output(one: Completion) -> dict[str, Any]:
    logprobs = one.logprobs
    return {
        "token_ids": list(one.token_ids),
        "text": one.text,
        "finish_reason": one.finish_reason,
        "logprobs": None if logprobs is None else [asdict(each) for each in logprobs],
    }


def _is_same(old: dict[str, Any], new: Completion) -> bool:
    given = json.loads(json.dumps(_output(new)))
    if old.get("finish_reason") != "aborted":
        return bool(given == old)
    ids = old.get("token_ids") or []
    return bool(given["token_ids"][: len(ids)] == ids)
