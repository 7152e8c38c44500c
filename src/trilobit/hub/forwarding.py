"""What huggingface_hub reports its progress to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def as_tqdm(advance: Callable[[int], None]) -> type[Any]:
    """A class with tqdm's face, which is what huggingface_hub reports to."""

    class Forwarding:
        n = 0
        total: int | None = None

        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.update(initial)

        def __enter__(self) -> Forwarding:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            advance(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            """Bytes on the wire: fewer than the file's when chunks are shared."""

        def close(self) -> None:
            pass

        def refresh(self, *_: object, **__: object) -> None:
            pass

        set_postfix_str = set_transfer_postfix_str = set_description_str = refresh

    return Forwarding
