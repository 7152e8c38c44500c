"""No line of an error repeats more of the input than anybody reads."""

from __future__ import annotations

import pytest

from trilobit import errors

EVERY = [
    errors.TrilobitError,
    errors.FormatError,
    errors.UnsupportedModel,
    errors.RequestError,
    errors.ContextOverflow,
    errors.RecipeError,
    errors.EngineError,
    errors.DownloadError,
    errors.OutputError,
]


@pytest.mark.parametrize("kind", EVERY)
def test_a_message_of_megabytes_keeps_its_beginning_and_its_remedy(
    kind: type[errors.TrilobitError],
) -> None:
    message = str(kind(f"file.json: key is {'x' * 5_000_000}; expected a number"))
    assert message.startswith("file.json: key is xxx")
    assert message.endswith("xxx; expected a number")
    assert len(message) <= 1000


@pytest.mark.parametrize("kind", EVERY)
def test_other_messages_stay_as_they_are(kind: type[errors.TrilobitError]) -> None:
    message = "m" * 1000
    assert str(kind(message)) == message
    assert kind(message).args == (message,)
