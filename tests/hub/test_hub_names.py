"""What a model's name means, whoever asks; which files of a repository are wanted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from trilobit.bundled import DEFAULT, bundled_models
from trilobit.errors import FormatError, RequestError, UnsupportedModel
from trilobit.formats.open import open_source
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.files import needed
from trilobit.hub.home import home
from trilobit.hub.names import ALIASES, Repo, near_names, repo_of, resolve

CHECKPOINT = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- names ------------------------------------------------------------------------------------


def test_every_alias_is_a_repository_that_shows_by_its_alias() -> None:
    for alias, target in ALIASES.items():
        repo = resolve(alias)
        assert isinstance(repo, Repo)
        assert str(repo) == target
        assert repo.alias == alias
        assert resolve(alias.upper()) == repo
        assert resolve(target) == repo
        assert resolve(f"hf://{target}") == repo
        assert resolve(f"hf://{alias}") == repo
        assert repo_of(str(repo)) == repo


def test_the_documentation_has_every_alias() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.split("## Short names")[1].split("## ")[0]
    assert dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", table, re.MULTILINE)) == ALIASES


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("org/name", Repo("org/name")),
        ("org/name@main", Repo("org/name")),
        ("org/name@v1.0", Repo("org/name", "v1.0")),
        ("org/name@refs/pr/1", Repo("org/name", "refs/pr/1")),
        ("org/name:a.gguf", Repo("org/name", "main", "a.gguf")),
        ("org/name@v1:q/a-b.gguf", Repo("org/name", "v1", "q/a-b.gguf")),
        ("hf://org/name", Repo("org/name")),
        ("https://huggingface.co/org/name", Repo("org/name")),
        ("https://huggingface.co/org/name/", Repo("org/name")),
        ("https://hf.co/org/name@v1", Repo("org/name", "v1")),
        ("MICROSOFT/BitNet-B1.58-2b-4t", Repo("microsoft/bitnet-b1.58-2B-4T")),
        ("microsoft/BitNet-embedding-0.6B", Repo("microsoft/bitnet-embedding-0.6b")),
    ],
)
def test_a_repository_is_known_by_its_form(name: str, repo: Repo) -> None:
    assert resolve(name) == repo
    assert resolve(str(repo)) == repo


@pytest.mark.parametrize(
    "name",
    [
        "./bitnet-2b",
        "/bitnet-2b",
        "../org/name",
        "a/b/c",
        "model.trilobit",
        "folder/model.gguf",
        "org/name.safetensors",
        "org/na..me",
        "org/na--me",
        "org/name@../x",
        "org/name:../x.gguf",
        "org/name:a.bin",
        "org/",
        "~/model",
        "a\0b.gguf",
    ],
)
def test_a_path_stays_a_path_whether_or_not_it_is_there(name: str) -> None:
    assert resolve(name) == Path(name)


def test_a_path_object_is_never_a_name() -> None:
    assert resolve(Path("bitnet-2b")) == Path("bitnet-2b")
    assert resolve(Path("org/name")) == Path("org/name")


@pytest.mark.parametrize("name", ["bitnet-2b", "org/name", DEFAULT])
def test_a_file_comes_before_a_name(name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(b"")
    assert resolve(name) == Path(name)


@pytest.mark.parametrize("name", ["bitnet-2b", "org/name", DEFAULT])
def test_a_folder_with_a_checkpoint_comes_before_a_name(name: str) -> None:
    Path(name).mkdir(parents=True)
    (Path(name) / "config.json").write_text("{}")
    assert resolve(name) == Path(name)


def test_a_folder_without_a_checkpoint_hides_no_name() -> None:
    Path("bitnet-2b").mkdir()
    Path(DEFAULT).mkdir()
    assert resolve("bitnet-2b") == Repo("microsoft/bitnet-b1.58-2B-4T")
    assert resolve(DEFAULT) == bundled_models()[DEFAULT]


def test_a_folder_that_nobody_knows_as_a_name_is_a_folder() -> None:
    Path("org/name").mkdir(parents=True)
    Path("mine").mkdir()
    assert resolve("org/name") == Path("org/name")
    assert resolve("mine") == Path("mine")
    assert resolve("hf://org/name") == Repo("org/name")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bitnet2b", "bitnet-2b"),
        ("falcon3-1b-instruct", "falcon3-1b"),
        ("Falcon-E-3B-Instruct", "falcon-e-3b"),
        ("trilobit-story-5m", DEFAULT),
        ("bonsai8b", "bonsai-8b"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, meant: str) -> None:
    assert meant in near_names(name)
    with pytest.raises(RequestError, match=f"{name}: neither a file nor a known.* mean .*{meant}"):
        resolve(name)


def test_a_name_like_no_other_is_refused_without_guesses() -> None:
    with pytest.raises(RequestError, match="neither a file nor a known model; `trilobit list"):
        resolve("qqqqqqqq")


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c", "https://hf.co/a/../b"])
def test_a_hub_address_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="org/name"):
        resolve(name)


# ---- files ------------------------------------------------------------------------------------


def test_a_checkpoint_is_its_weights_config_and_text_and_no_more() -> None:
    others = ["README.md", "modeling.py", "pytorch_model.bin", "onnx/model.onnx", "a.gguf", "x.pt"]
    text = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"]
    found = needed(Repo("a/b"), [*others, *CHECKPOINT, *text])
    assert set(found.files) == {*CHECKPOINT, *text}
    assert found.source is None


def test_shards_are_wanted_all_together_with_their_index() -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "model.safetensors.index.json"
    found = needed(Repo("a/b"), ["config.json", index, *shards, "consolidated.safetensors"])
    assert set(found.files) == {"config.json", index, *shards}
    with pytest.raises(UnsupportedModel, match="1 of the 2 shards"):
        needed(Repo("a/b"), ["config.json", index, shards[0]])
    one = needed(Repo("a/b"), [*CHECKPOINT, *shards])  # as transformers chooses
    assert set(one.files) == set(CHECKPOINT)


def test_the_only_gguf_is_taken_and_of_several_the_named_one() -> None:
    assert needed(Repo("a/b"), ["README.md", "m.gguf"]).files == ("m.gguf",)
    found = needed(Repo("a/b", "main", "n.gguf"), [*CHECKPOINT, "m.gguf", "n.gguf"])
    assert (found.files, found.source) == (("n.gguf",), "n.gguf")
    with pytest.raises(RequestError, match=r"choose one: a/b:m\.gguf, a/b:n\.gguf"):
        needed(Repo("a/b"), ["m.gguf", "n.gguf"])
    with pytest.raises(RequestError, match=r"no such file in a/b; choose one: a/b:m\.gguf"):
        needed(Repo("a/b", "main", "x.gguf"), ["m.gguf"])


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["config.json", "pytorch_model.bin"], "pickled weights only, which can run code"),
        (["config.json", "model.pt"], "pickled weights only"),
        (["README.md"], "no model.safetensors and no GGUF"),
        (["model.safetensors"], "without a config.json"),
    ],
)
def test_a_repository_that_cannot_be_read_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"^a/b: .*{reason}"):
        needed(Repo("a/b"), names)


# ---- home -------------------------------------------------------------------------------------


def test_the_home_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", "here")
    assert home() == tmp_path / "here"
    monkeypatch.delenv("TRILOBIT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "trilobit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert home().is_relative_to(Path(os.path.expanduser("~")))


# ---- the folder of a training run -------------------------------------------------------------


def _run(*parts: str) -> Path:
    folder = Path("bitnet-2b")  # whatever else that is a name of
    for part in parts:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text("{}")
    return folder


def test_the_folder_of_a_finished_run_is_its_packed_checkpoint() -> None:
    folder = _run("recipe.json", "packed/config.json", "model/config.json")
    for name in ("bitnet-2b", "bitnet-2b/", folder, folder.absolute()):
        assert resolve(name) == Path(name) / "packed"


def test_a_folder_that_is_no_run_is_not_looked_into() -> None:
    folder = _run("packed/config.json")
    assert resolve(folder) == folder
    assert resolve("bitnet-2b") == Repo("microsoft/bitnet-b1.58-2B-4T")
    (folder / "recipe.json").write_text("{}")
    (folder / "config.json").write_text("{}")  # a checkpoint with a file of that name
    assert resolve("bitnet-2b") == folder


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "a training run that has not ended, without a checkpoint that is a model; end it"),
        (
            ("checkpoint-5/config.json",),
            "a training run that has not ended; end it, or give the folder of a checkpoint",
        ),
        # Of parts of a model, or an adapter's.
        (("checkpoint-5/trainer_state.json",), "a training run that has not ended, without a"),
        (("model/a",), "a training run, whose weights are not ternary, or of a kind that does not"),
        (("adapter/a",), "a training run, whose adapter runs beside its model; give the model, an"),
        (("packed/config.json",), "a training run; give bitnet-2b/packed"),
    ],
)
def test_a_run_without_a_model_that_runs_says_what_to_give(
    parts: tuple[str, ...], message: str
) -> None:
    folder = _run("recipe.json", *parts)
    for open_it in (PackedModel, open_source):
        with pytest.raises(FormatError) as error:
            open_it(folder)
        assert str(error.value).startswith(f"bitnet-2b: {message}")
