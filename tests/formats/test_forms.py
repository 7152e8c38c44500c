"""Any form becomes any other, and what loses nothing comes back to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from trilobit import OutputError
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import FORMS, Form, convert

# The others round: TQ1_0 and TQ2_0 their scales to float16, Q8_0 the embedding.
LOSSLESS: tuple[Form, ...] = ("packed", "hf", "hf-bf16", "gguf")
SUFFIXES = {"packed": ".trilobit", "hf": "", "hf-bf16": ""}


def written(folder: Path, source: Path, form: Form) -> Path:
    out = folder / f"{source.stem}-{form}{SUFFIXES.get(form, '.gguf')}"
    convert(source, out, form)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with a tokenizer, packed by this version."""
    bundled = bundled_models().get(DEFAULT)
    if bundled is None:
        pytest.skip("no bundled model in this installation")
    path = tmp_path_factory.mktemp("forms") / "model.trilobit"
    convert(bundled, path)
    return path


@pytest.mark.parametrize("first", FORMS)
def test_any_form_becomes_any_other(model: Path, first: Form, tmp_path: Path) -> None:
    one = written(tmp_path, model, first)
    for second in FORMS if first in LOSSLESS else LOSSLESS:
        if (first, second) == ("hf-bf16", "hf-bf16"):  # masters that would be made anew
            with pytest.raises(OutputError, match="has float masters already"):
                written(tmp_path, one, second)
            continue
        two = written(tmp_path, one, second)
        again = written(tmp_path, two, "packed").read_bytes()
        lossless = first in LOSSLESS and second in LOSSLESS
        assert (again == model.read_bytes()) == lossless, second
