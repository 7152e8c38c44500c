"""Text in Parquet files and in folders that `datasets` saved is that of lines, or one error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from fables import FABLES, RECIPE, one_error, train, write_recipe
from pyarrow import parquet

from trilobit.errors import RecipeError
from trilobit.train.data import tables
from trilobit.train.data.documents import alike, conversations, documents, preferences
from trilobit.train.data.tokens import prepare
from trilobit.train.recipes import load_recipe

ROWS = {"id": list(range(8)), "text": list(FABLES), "source": ["aesop"] * 4 + ["other"] * 4}


def _parquet(path: Path, **columns: list[Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def _saved(path: Path, rows: dict[str, list[Any]], shards: int = 3) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows).save_to_disk(path, num_shards=shards)
    return path


def test_rows_are_the_documents_of_a_jsonl(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    expected = list(documents(tmp_path / "fables.jsonl"))
    assert list(documents(_parquet(tmp_path / "f.parquet", **ROWS))) == expected
    assert list(documents(_saved(tmp_path / "saved", ROWS))) == expected
    other = [(number, text) for number, text in expected if number >= 4]
    assert list(documents(tmp_path / "f.parquet", source="other")) == other
    assert list(documents(tmp_path / "saved", source="other")) == other


def test_rows_are_read_in_parts_and_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_ROWS", 3)
    write_recipe(tmp_path)
    expected = list(documents(tmp_path / "fables.jsonl"))
    parquet.write_table(pyarrow.table(ROWS), tmp_path / "f.parquet", row_group_size=5)
    assert list(documents(tmp_path / "f.parquet")) == expected
    assert list(documents(_saved(tmp_path / "saved", ROWS, shards=1))) == expected


def test_the_column_of_the_text_may_have_another_name(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "f.parquet", body=ROWS["text"], text=["none"] * 8)
    assert [text for _, text in documents(path, column="body")] == list(FABLES)
    (tmp_path / "f.jsonl").write_text(json.dumps({"body": FABLES[0]}))
    assert list(documents(tmp_path / "f.jsonl", column="body")) == [(0, FABLES[0])]


def test_of_several_datasets_train_is_meant_and_others_have_their_names(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    parts = {
        name: datasets.Dataset.from_dict({"text": texts})
        for name, texts in (("train", FABLES[:6]), ("test", FABLES[6:]))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert [text for _, text in documents(tmp_path / "both")] == list(FABLES[:6])
    assert [text for _, text in documents(tmp_path / "both" / "test")] == list(FABLES[6:])
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(RecipeError) as error:
        list(documents(tmp_path / "one"))
    assert str(error.value) == (
        f"{tmp_path / 'one'}: holds the datasets test, and none is named train; name one of them: "
        f"{tmp_path / 'one' / 'test'}"
    )


def test_a_table_gives_the_tokens_of_its_jsonl_and_another_table_is_another_text(
    tmp_path: Path,
) -> None:
    lines = prepare(load_recipe(write_recipe(tmp_path)), tmp_path / "lines")  # type: ignore[arg-type]
    _saved(tmp_path / "saved", ROWS)
    recipe = write_recipe(tmp_path, RECIPE.replace("fables.jsonl", "saved"))
    rows = prepare(load_recipe(recipe), tmp_path / "rows")  # type: ignore[arg-type]
    assert rows.train.tolist() == lines.train.tolist()
    assert rows.held_out.tolist() == lines.held_out.tolist()
    assert train(recipe, tmp_path / "run", "--max-steps", "13").code == 0
    _saved(tmp_path / "moved", ROWS)
    more = ("--data", str(tmp_path / "moved"), "--max-steps")
    assert train(recipe, tmp_path / "run", *more, "15").code == 0
    _saved(tmp_path / "changed", {**ROWS, "text": list(reversed(FABLES))})
    more = ("--data", str(tmp_path / "changed"), "--max-steps")
    error = one_error(train(recipe, tmp_path / "run", *more, "17"))
    assert error.startswith(f"{tmp_path / 'run'}: its checkpoints were trained on other text than ")


def test_what_is_no_text_may_be_a_table_too(tmp_path: Path) -> None:
    question = [{"role": "user", "content": "Hello!"}]
    good, bad = ([*question, {"role": "assistant", "content": x}] for x in ("Hi.", "What?"))
    path = _parquet(tmp_path / "c.parquet", messages=[good, bad])
    assert [messages for _, messages in conversations(path)] == [good, bad]
    path = _parquet(tmp_path / "p.parquet", chosen=[good], rejected=[bad])
    ((_, preference),) = preferences(path)
    assert preference == (question, "Hi.", "What?")
    path = _parquet(tmp_path / "a.parquet", anchor=["a"], positive=["b"])
    assert list(alike(path)) == [(0, ("a", "b"))]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _not_utf_8(path: Path) -> None:
    # As a writer in another language may: pyarrow checks texts when they are taken out.
    wrong = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(2, *wrong.buffers()[1:])
    parquet.write_table(pyarrow.table({"text": text}), path)


@pytest.mark.parametrize(
    ("columns", "spoil", "message"),
    [
        ({"body": ["a"], "id": [1]}, None, "{path}: has no column 'text'; it has body, id"),
        ({"text": ["a", None]}, None, "{path}: row 2: 'text' is no string; mend or remove it"),
        ({"text": [1]}, None, "{path}: row 1: 'text' is no string; mend or remove it"),
        ({"text": ["a" * (9 << 20)]}, None, "{path}: row 1 has more than 8 MB; make several of it"),
        ({"text": ["a"]}, _cut, "{path}: is no whole Parquet file ("),
        ({"text": ["a"]}, lambda path: path.write_bytes(b""), "{path}: is no whole Parquet file ("),
        ({"text": ["a"]}, _not_utf_8, "{path}: row 2 is not UTF-8; convert the file, or remove"),
        ({"text": ["a"]}, Path.unlink, "{path}: cannot read the training text (no such file); ch"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_is_one_line(
    tmp_path: Path,
    columns: dict[str, list[Any]],
    spoil: Callable[[Path], object] | None,
    message: str,
) -> None:
    path = _parquet(tmp_path / "x.parquet", **columns)
    if spoil:
        spoil(path)
    with pytest.raises(RecipeError) as error:
        list(documents(path))
    assert str(error.value).startswith(message.format(path=path))
    assert str(error.value).isprintable()


def test_a_damaged_parquet_file_never_ends_otherwise_than_in_a_line(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "x.parquet", **ROWS)
    whole = path.read_bytes()
    told = []
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            list(documents(path))
        except RecipeError as error:
            told.append(str(error))
    assert told
    assert all(error.startswith(f"{path}: ") and error.isprintable() for error in told)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "state.json").unlink(),
            "{folder}: no folder that datasets saved",
        ),
        (
            lambda folder: (folder / "state.json").write_text('{"_data_files": 3}'),
            "{folder}: no folder that datasets saved",
        ),
        (
            lambda folder: (folder / "data-00001-of-00003.arrow").unlink(),
            "{folder}/data-00001-of-00003.arrow: cannot read the training text (no such file)",
        ),
        (
            lambda folder: _cut(folder / "data-00001-of-00003.arrow"),
            "{folder}/data-00001-of-00003.arrow: is no whole Arrow file (",
        ),
        (
            lambda folder: (folder / "state.json").write_text(
                '{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{}]}'
            ),
            "{folder}: its rows are chosen by indices, as old versions of datasets saved them;",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = _saved(tmp_path / "saved", ROWS)
    spoil(folder)
    recipe = write_recipe(tmp_path, RECIPE.replace("fables.jsonl", "saved"))
    error = one_error(train(recipe, tmp_path / "run"))
    assert error.startswith(message.format(folder=folder))
    assert not (tmp_path / "run" / "model").exists()


def test_without_pyarrow_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _parquet(tmp_path / "x.parquet", text=["a"])
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as error:
        list(documents(path))
    assert str(error.value).endswith("needs the package 'pyarrow'; pip install pyarrow")
