"""Any form of a model -> any other, one projection at a time.

Each form has one reader (`formats/source.py`) and one writer. Memory stays at one projection, one
table and the tokenizer.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from trilobit.errors import FormatError, OutputError, RequestError
from trilobit.formats.dead_tensors import Judge, Judged, in_words
from trilobit.formats.gguf import is_gguf
from trilobit.formats.gguf.ternary_blocks import I2SLayout
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.hf.generation import given_sampling
from trilobit.formats.hf.writer import write_hf, write_hf_bf16
from trilobit.formats.merged import Merged
from trilobit.formats.open import open_source
from trilobit.formats.packed.checksums import damaged_parts
from trilobit.formats.packed.source import PackedSource
from trilobit.formats.packed.writer import write_packed
from trilobit.formats.rounded import Rounded
from trilobit.formats.source import Source
from trilobit.layouts import chosen_layout
from trilobit.model.config import ModelConfig
from trilobit.model.packing import LayoutChoice
from trilobit.progress import Steps, Watch, steps

# Of a Hugging Face directory there are two: packed weights, and weights as floats.
# Of GGUF there is one for each type of the projections, and one whose embedding is in 8 bits.
Form = Literal["packed", "hf", "hf-bf16", "gguf", "gguf-q8", "gguf-tq1_0", "gguf-tq2_0"]
FORMS: tuple[Form, ...] = get_args(Form)
_FORM_OF_SUFFIX: dict[str, Form] = {".trilobit": "packed", ".gguf": "gguf", "": "hf"}


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: Form | None = None,
    *,
    i2s_layout: I2SLayout | None = None,
    layout: LayoutChoice | None = None,
    adapter: str | os.PathLike[str] | None = None,
    half_tables: bool = False,
    generation_config: str | os.PathLike[str] | None = None,
    progress: Watch | None = None,
    told: Callable[[str], None] | None = None,
) -> ModelConfig:
    """Write the model `source` as `out`, in the form `to` (None: the form that `out` is named for).

    i2s_layout: how a GGUF source lays out I2_S, where it is not as x86 builds do. layout: of the
    weights of a packed file (model/packing.py); "auto": what is faster here; None: as in the
    source, if that is a packed file, else "2-bit". adapter: folder of a LoRA adapter that is merged
    into the float masters of a Hugging Face directory, which are then rounded anew: not exactly
    what base and adapter compute side by side. half_tables: float32 embedding and head are rounded
    to float16 in a packed file. generation_config: a generation_config.json that says how tokens
    are chosen where a request does not, in place of what the model says. told: called with one line
    where tensors of the model look dead (formats/dead_tensors.py); it is written all the same.

    Raises FormatError for a damaged model, UnsupportedModel for one we do not run, OutputError when
    `out` cannot be written, RequestError when its name stands for no form.
    """
    _check_path("source", source, "the file or folder of a model")
    _check_path("out", out, "the name of a file or folder to be written")
    if to is not None and to not in FORMS:
        raise RequestError(f"to is {reprlib.repr(to)}; expected one of {', '.join(FORMS)}")
    form = to or form_of(out)
    out = Path(out)
    if i2s_layout is not None and not is_gguf(Path(source)):
        raise RequestError(f"{os.fspath(source)}: i2s_layout is of GGUF files, and this is none")
    if layout is not None and form != "packed":
        raise RequestError(
            f"{out}: layout is of packed files, and this is to be {form}; leave it out, or end "
            "the name in .trilobit"
        )
    if half_tables and form != "packed":
        raise RequestError(
            f"{out}: half_tables (--half-tables) is of packed files, and this is to be {form}; "
            "leave it out, or end the name in .trilobit"
        )
    model = open_source(source, i2s_layout=i2s_layout)
    if adapter is not None:
        _check_path("adapter", adapter, "the folder of an adapter")
        if form == "hf-bf16":
            raise RequestError(
                f"{out}: merged masters are rounded to codes, and floats made of those are no "
                "masters to train on; choose another form"
            )
        model = Merged(model, Path(adapter))
    text = model.text
    if generation_config is not None:
        _check_path("generation_config", generation_config, "a generation_config.json")
        if form == "hf-bf16":
            raise RequestError(
                f"{out}: float weights are a copy; put your generation_config.json into it then"
            )
        path = Path(generation_config)
        text = replace(text, sampling=given_sampling(path))
    _check_output(out, form, model.path)
    if isinstance(model, PackedSource) and (wrong := damaged_parts(model.file)):
        # What is written gets sums of its own, which would call the damage sound.
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise FormatError(
            f"{model.path}: {wrong[0]}{more} has changed since the file was written; copy or "
            "download it again, or convert the model it was made of"
        )
    judge = Judge()
    judged = Judged(Rounded(model) if half_tables else model, judge, text)
    step = steps(progress, f"Converting {Path(source).name}")
    if form == "packed":
        chosen = chosen_layout(
            layout,
            model.config,
            name=str(model.path),
            own=model.layout if isinstance(model, PackedSource) else "2-bit",
            embeds=model.text.pooling is not None,
        )
        write_packed(judged, out, step, chosen)
    else:
        # Float weights of a checkpoint are copied, and that is refused by what the source is.
        _WRITERS[form](model if form == "hf-bf16" else judged, out, step)
    if told is not None and (dead := judge.dead()):
        told(f"{model.path}: looks damaged: {in_words(dead)}; `trilobit verify` tells more")
    return model.config


def _check_path(name: str, value: object, what: str) -> None:
    if not isinstance(value, str | os.PathLike) or not (text := os.fspath(value)):
        raise RequestError(f"{name} is {reprlib.repr(value)}; give {what}")
    if "\0" in str(text):
        raise RequestError(f"{name} is {reprlib.repr(value)}: not a possible file name")


def form_of(out: str | os.PathLike[str]) -> Form:
    """The form that the suffix of a name stands for; a Hugging Face directory has none.

    RequestError when it stands for no form.
    """
    suffix = "" if os.path.isdir(out) else Path(out).suffix.lower()
    if suffix not in _FORM_OF_SUFFIX:
        known = ", ".join(filter(None, _FORM_OF_SUFFIX))
        raise RequestError(
            f"{os.fspath(out)}: the suffix {suffix!r} names no form; end it in {known}, leave it "
            f"out for a Hugging Face directory, or choose one with --to: {', '.join(FORMS)}"
        )
    return _FORM_OF_SUFFIX[suffix]


_WRITERS: dict[Form, Callable[[Source, Path, Steps | None], None]] = {
    "hf": write_hf,
    "hf-bf16": write_hf_bf16,
    "gguf": write_gguf,
    "gguf-q8": partial(write_gguf, q8_tables=True),
    "gguf-tq1_0": partial(write_gguf, ternary="tq1_0"),
    "gguf-tq2_0": partial(write_gguf, ternary="tq2_0"),
}


def _check_output(out: Path, form: Form, source: Path) -> None:
    if form.startswith("hf"):
        return  # a new directory; whoever makes it looks
    if os.path.isdir(out):
        raise OutputError(f"{out}: is a directory; give a file name, such as {out}/model.trilobit")
    if not os.path.exists(out):
        return
    if os.path.samefile(out, source):
        raise OutputError(f"{out}: the model itself; choose another name")
    if os.path.samefile(out.parent, source) and out.suffix.lower() in (
        ".safetensors",
        ".json",
        ".jinja",
        ".model",
    ):
        raise OutputError(f"{out}: a file of the checkpoint itself; choose another name")
