"""A line that says how far the prompt is, until the reply begins."""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
from types import TracebackType

from trilobit.cli.chat.reply import has_styles
from trilobit.stream import Stream

_PATIENCE_S = 0.3  # what is faster needs no line
_TURN_S = 0.1
_SIGNS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Waiting:
    """Draws the line on stderr in the background, from `with` on until `stop`."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._tokens = stream, stream.completion.prompt_tokens
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
            line = progress_line(sign, self._stream.prompt_tokens_done, self._tokens)
            sys.stderr.write(
                f"\r\x1b[2K\x1b[2m{line}\x1b[0m" if has_styles() else f"\r\x1b[2K{line}"
            )
            sys.stderr.flush()
            if self._stopped.wait(_TURN_S):
                break
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()


def progress_line(sign: str, done: int, total: int) -> str:
    """As much as fits into one line, which must not wrap: it could not be taken away again."""
    done = min(done, total)
    room = shutil.get_terminal_size().columns - 1  # some terminals wrap behind the last column
    forms = (
        f"{sign} reading {done:,} of {total:,} tokens",
        f"{sign} {done:,} of {total:,}",
        f"{sign} {100 * done // max(1, total)}%",
        sign,
    )
    return next((form for form in forms if len(form) <= room), "")
