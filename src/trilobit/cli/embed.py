"""`trilobit embed`: vectors of texts, for programs."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from trilobit.cli.command import Command
from trilobit.cli.options import context_option, layout_option, model_argument, threads_option
from trilobit.cli.path import FilePath
from trilobit.errors import RequestError
from trilobit.vectors import PRECISIONS, Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trilobit.model.packing import LayoutChoice

_MOST_INPUT = 1_000_000_000  # bytes; do not read /dev/zero to its end


class _Text(NamedTuple):
    text: str
    source: dict[str, Any]  # where it stands


@click.command(
    "embed",
    cls=Command,
    examples=[
        ("trilobit embed bitnet-embedding-0.6b < lines.txt", "A vector of each line."),
        ("trilobit embed bitnet-embedding-0.6b a.txt b.txt", "A vector of each file."),
        ("trilobit embed -m model.trilobit --out v.npy *.txt", "One numpy array."),
    ],
)
@model_argument()
@click.argument("files", nargs=-1, type=FilePath())
@click.option("--lines", is_flag=True, help="Every line of FILES is a text of its own.")
@click.option(
    "--instruction", metavar="TEXT", help="What is asked of queries; documents have none."
)
@click.option("--prompt", metavar="NAME", help="One of the model's own prompts.")
@click.option("--dimensions", type=int, metavar="N", help="Keep the first N values (Matryoshka).")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), default="float32", help="Of the values."
)
@click.option("--pooling", type=click.Choice(["last", "mean"]), help="In place of the model's own.")
@click.option("--truncate", is_flag=True, help="Leave out the end of texts that are too long.")
@click.option("--out", type=FilePath(), metavar="FILE", help="Write a .npy file.")
@click.option("--force", is_flag=True, help="Replace the file of --out.")
@threads_option
@context_option
@layout_option
def command(
    model: str,
    files: tuple[Path, ...],
    lines: bool,
    instruction: str | None,
    prompt: str | None,
    dimensions: int | None,
    precision: Precision,
    pooling: Any,
    truncate: bool,
    context: int | None,
    threads: int | None,
    layout: LayoutChoice | None,
    out: Path | None,
    force: bool,
) -> None:
    """Print a vector of each text, as JSON lines; --out writes them as one numpy array.

    Each of FILES is a text; without any, each line of stdin is one. Vectors have length 1, so
    their dot product is their cosine; in fewer bits than 32 they are what docs/embeddings.md says.
    """
    from trilobit.cli.writing import check_free
    from trilobit.console import Bars

    if out is not None:
        check_free(out, replace=force, remedy="choose another name, or replace it with --force")
    texts = _from_files(files, lines) if files else _from_stdin()
    from trilobit.embedder import Embedder

    embedder = Embedder(model, pooling=pooling, context=context, threads=threads, layout=layout)
    with Bars() as bars:
        vectors = embedder.encode(
            [text for text, _ in texts],
            instruction=instruction,
            prompt=prompt,
            dimensions=dimensions,
            precision=precision,
            truncate=truncate,
            progress=bars,
        )
    if out is not None:
        _write(out, vectors)
        return
    for (_, source), vector in zip(texts, vectors, strict=True):
        print(json.dumps({**source, "embedding": _numbers(vector)}))


def _from_files(files: tuple[Path, ...], lines: bool) -> list[_Text]:
    from trilobit.formats.files import read_text

    texts: list[_Text] = []
    for path in files:
        if not path.exists():
            raise RequestError(
                f"{shorten(str(path), 80)}: no such file; check the name, or "
                "pipe texts, one a line: echo TEXT | trilobit embed MODEL"
            )
        whole = read_text(path)
        if lines:
            texts += _lines(whole, {"file": str(path)})
        else:
            texts.append(_Text(whole.removesuffix("\n"), {"file": str(path)}))
    return texts


def _from_stdin() -> list[_Text]:
    from trilobit.cli.prompt import stdin_bytes

    data = stdin_bytes(_MOST_INPUT + 1)
    if len(data) > _MOST_INPUT:
        raise RequestError("standard input: more than 1 GB; give it in parts")
    try:
        return _lines(data.decode("utf-8"), {})
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def _lines(text: str, source: dict[str, Any]) -> list[_Text]:
    """One text a line, whatever ends it; only a newline does, not what Unicode calls a line."""
    lines = text.removesuffix("\n").split("\n") if text else []
    return [
        _Text(line.removesuffix("\r"), {**source, "line": number})
        for number, line in enumerate(lines, start=1)
    ]


def _numbers(vector: NDArray[Any]) -> list[float] | list[int]:
    """Numbers for JSON: of floats the shortest that read back as the same float32."""
    if vector.dtype.kind == "f":
        return [float(str(value)) for value in vector]
    return [int(value) for value in vector]


def _write(path: Path, vectors: NDArray[np.generic]) -> None:
    import io

    from numpy.lib import format as npy

    from trilobit.formats.whole_file import WholeFile

    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(vectors))
    start = header.getvalue()
    with WholeFile(path, start, len(start) + vectors.nbytes) as file:
        file.write(vectors)
