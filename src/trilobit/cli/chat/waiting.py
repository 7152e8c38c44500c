"""A line that says how far the prompt is, until the reply begins."""

from __future__ import annotations

import itertools
import sys
import threading
from types import TracebackType

from trilobit.stream import Stream

_PATIENCE_S = 0.3  # what is faster needs no line
_TURN_S = 0.1
_SIGNS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Waiting:
    """Draws the line on stderr in the background, from `with` on until `stop`."""

    def __init__(self, stream: Stream, tokens: int) -> None:
        self._stream, self._tokens = stream, tokens
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="trilobit-waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the line away; once is enough."""
        self._stopped.set()
        self._thread.join()

    def _draw(self) -> None:
        if self._stopped.wait(_PATIENCE_S):
            return
        for sign in itertools.cycle(_SIGNS):
            done = min(self._stream.prompt_tokens_done, self._tokens)
            sys.stderr.write(f"\r\x1b[2K{sign} reading {done:,} of {self._tokens:,} tokens")
            sys.stderr.flush()
            if self._stopped.wait(_TURN_S):
                break
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()
