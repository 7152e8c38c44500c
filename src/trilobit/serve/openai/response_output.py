"""What `/v1/responses` gives: items of thought, text and calls, and the events that tell of them.

One item is open at a time. What comes whole goes the same way, and nobody hears its events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from trilobit.text.reply import Part
from trilobit.text.tools import ToolCall

# type of an item -> beginning of its id, type of its one part, beginning of the names of its events
_TEXTS = {
    "message": ("msg", "output_text", "response.output_text"),
    "reasoning": ("rs", "reasoning_text", "response.reasoning_text"),
}


class Output:
    """Items as they come. name: that no other answer has. event: makes one of a type and fields."""

    def __init__(self, name: str, event: Callable[..., bytes]) -> None:
        self.items: list[dict[str, Any]] = []
        self._name, self._event = name, event
        self._pieces: list[str] | None = None  # of the item that is open

    def add(self, part: Part) -> Iterator[bytes]:
        """What is new."""
        if part.thought:
            yield from self._more("reasoning", part.thought)
        if part.text:
            yield from self._more("message", part.text)
        for call in part.calls:
            yield from self._call(call)

    def end(self, status: str) -> Iterator[bytes]:
        """No more of it; an answer has one item at least. status: of the last one."""
        if not self.items:
            yield from self._more("message", "")
        yield from self._close(status)
        self.items[-1]["status"] = status

    def _more(self, kind: str, text: str) -> Iterator[bytes]:
        if self._pieces is None or self.items[-1]["type"] != kind:
            yield from self._begin(kind)
        assert self._pieces is not None
        self._pieces.append(text)
        if text:
            yield self._told("delta", delta=text)

    def _begin(self, kind: str) -> Iterator[bytes]:
        yield from self._close("completed")
        start, part, _ = _TEXTS[kind]
        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        item = {"id": f"{start}_{self._name}_{len(self.items)}", "type": kind, **own, "content": []}
        yield self._added(item)
        self._pieces = []
        yield self._event("response.content_part.added", part=_part(part, ""), **self._place())

    def _close(self, status: str) -> Iterator[bytes]:
        """End the item that is open."""
        if self._pieces is None:
            return
        item, text = self.items[-1], "".join(self._pieces)
        part = _part(_TEXTS[item["type"]][1], text)
        yield self._told("done", text=text)
        self._pieces = None
        yield self._event("response.content_part.done", part=part, **self._place())
        yield self._done(item | {"content": [part], "status": status})

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        yield from self._close("completed")
        item = {
            "id": call.id.replace("call_", "fc_"),
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
        }
        yield self._added(item)
        place = {"item_id": item["id"], "output_index": len(self.items) - 1}
        kind = "response.function_call_arguments"
        yield self._event(f"{kind}.delta", delta=call.arguments, **place)
        yield self._event(f"{kind}.done", name=call.name, arguments=call.arguments, **place)
        yield self._done(item | {"arguments": call.arguments, "status": "completed"})

    # ---- events -------------------------------------------------------------------------------

    def _added(self, item: dict[str, Any]) -> bytes:
        self.items.append(item | {"status": "in_progress"})
        number = len(self.items) - 1
        return self._event("response.output_item.added", output_index=number, item=self.items[-1])

    def _done(self, item: dict[str, Any]) -> bytes:
        self.items[-1] = item
        number = len(self.items) - 1
        return self._event("response.output_item.done", output_index=number, item=item)

    def _told(self, what: str, **fields: Any) -> bytes:
        kind = self.items[-1]["type"]
        logprobs: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return self._event(f"{_TEXTS[kind][2]}.{what}", **fields, **logprobs, **self._place())

    def _place(self) -> dict[str, Any]:
        number = len(self.items) - 1
        return {"item_id": self.items[-1]["id"], "output_index": number, "content_index": 0}


def _part(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}
