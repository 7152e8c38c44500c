"""The texts that a model is measured on: plain or JSON lines, packed by xz or not."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path

from trilobit.errors import FormatError
from trilobit.formats.files import open_file
from trilobit.train.data.documents import documents

_MOST_BYTES = 1 << 29  # of one plain text, which is one document


def read_texts(path: Path) -> Iterator[str]:
    """The documents of a file: each `text` of JSON lines (`.jsonl`), or else the whole file.

    Raises FormatError or RecipeError for a file that is missing, damaged, too long or not UTF-8.
    """
    inner = path.with_suffix("") if path.suffix == ".xz" else path
    if inner.suffix == ".jsonl":
        for _, text in documents(path):
            yield text
        return
    with open_file(path)[0] as file:
        try:
            if path.suffix == ".xz":
                with lzma.open(file) as unpacked:
                    data = unpacked.read(_MOST_BYTES + 1)
            else:
                data = file.read(_MOST_BYTES + 1)
        except (lzma.LZMAError, EOFError) as error:
            raise FormatError(f"{path}: is no whole .xz file ({error}); fetch it again") from None
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror}); try again") from None
    if len(data) > _MOST_BYTES:
        raise FormatError(f"{path}: more than {_MOST_BYTES >> 20} MB; cut it into several files")
    try:
        yield data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text; convert the file") from None
