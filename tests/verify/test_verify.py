"""`trilobit verify`: sound models pass in every form, and each way to be wrong is seen."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from conftest import tiny_config
from program import fail, trilobit

from trilobit import LLM, FormatError
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import convert
from trilobit.formats.packed.reader import PackedModel
from trilobit.model.config import ModelConfig
from trilobit.model.shapes import shape
from trilobit.verify import golden

# torch warns about itself when it loads what even an uncompiled torch.compile needs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

PROMPT = "Once upon a time, there was a little"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def bundled() -> Path:
    path = bundled_models().get(DEFAULT)
    if path is None:
        pytest.skip("no bundled model in this installation")
    return path


@pytest.fixture(scope="module")
def reference(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundled model in stock transformers."""
    directory = tmp_path_factory.mktemp("stock") / "stories"
    convert(bundled, directory)
    return stock.load(directory)


@pytest.fixture(scope="module")
def values(bundled: Path, reference: Any) -> dict[str, Any]:
    """Golden values that stock transformers computed."""
    llm = LLM(bundled)
    assert llm.tokenizer is not None
    ids = llm.encode("The little dog saw a red ball.")
    logits = stock.logits(reference, torch.tensor([ids]))[0].double()
    prompt = llm.chat_ids([{"role": "user", "content": PROMPT}])
    with torch.compiler.set_stance("force_eager"):
        written = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
    return {
        "origin": "stock transformers",
        "ids": ids,
        "mean_logits": logits.mean(dim=-1).tolist(),
        "first_logits": logits[0, :10].tolist(),
        "first_tolerance": 1e-4,
        "chat": PROMPT,
        "answer": llm.tokenizer.decode(written[0, len(prompt) :].tolist()),
    }


def verified(model: Path, *args: object) -> tuple[int, dict[str, bool | None]]:
    """Exit code, and what came of each check."""
    done = trilobit("verify", model, *args, "--json")
    assert done.stderr == ""
    result = json.loads(done.stdout)
    checks = {check["name"]: check["passed"] for check in result["checks"]}
    assert result["wrong"] == list(checks.values()).count(False)
    return done.returncode, checks


# ---- sound models -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["packed", "hf", "gguf"])
def test_a_sound_model_has_the_answers_of_transformers_in_every_form(
    bundled: Path, values: dict[str, Any], form: str, tmp_path: Path
) -> None:
    (tmp_path / "golden.json").write_text(json.dumps(values))
    model = bundled
    if form != "packed":
        model = tmp_path / ("model.gguf" if form == "gguf" else "model")
        convert(bundled, model, form)  # type: ignore[arg-type]
    code, checks = verified(model, "--golden", tmp_path / "golden.json")
    assert code == 0
    assert checks == {
        "checksums": True if form == "packed" else None,
        "weights": True,
        "tensors": True,
        "tokenizer": True,
        "threads": True,
        "batch": True,
        "logits": True,
        "golden": True,
        "mean logits": True,
        "first logits": True,
        "answer": True,
    }


def test_a_model_without_golden_values_says_so(model_file: Path) -> None:
    done = trilobit("verify", model_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no golden values are known of this model" in done.stdout
    assert len(done.stdout.splitlines()) == 8


# ---- wrong answers ----------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "a mean": ("mean logits", lambda v: v["mean_logits"].__setitem__(3, v["mean_logits"][3] + 0.1)),
    "a logit": ("first logits", lambda v: v["first_logits"].__setitem__(9, 1.0)),
    "an answer": ("answer", lambda v: v.update(answer="Trilobites had eyes of calcite.")),
    "ids of another model": ("golden", lambda v: v["ids"].__setitem__(2, 128000)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_answers_are_seen(
    bundled: Path, values: dict[str, Any], change: str, tmp_path: Path
) -> None:
    wrong, apply = CHANGES[change]
    changed = json.loads(json.dumps(values))
    apply(changed)
    (tmp_path / "golden.json").write_text(json.dumps(changed))
    code, checks = verified(bundled, "--golden", tmp_path / "golden.json")
    assert code == 1
    assert [name for name, passed in checks.items() if passed is False] == [wrong]


def test_another_model_of_the_shape_is_seen(
    bundled: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    """As when a file lost a little: one scale of 42 is a tenth larger."""
    model = tmp_path / "model.trilobit"
    shutil.copy(bundled, model)
    change(model, "model.layers.3.mlp.down_proj.weight_scale", lambda scale: scale * 1.1)
    (tmp_path / "golden.json").write_text(json.dumps(values))
    code, checks = verified(model, "--golden", tmp_path / "golden.json")
    assert code == 1
    assert checks["first logits"] is False


# ---- damaged files ----------------------------------------------------------------------------


def change(model: Path, name: str, new: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a float32 tensor of a packed file where it lies."""
    file = PackedModel(model).file
    info = file.info(name)
    values = new(file.array(name).copy()).astype(np.float32)
    with open(model, "r+b") as out:
        out.seek(info.begin)
        out.write(values.tobytes())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.layers.1.mlp.up_proj.weight_scale", np.nan),
        ("model.layers.1.mlp.up_proj.weight_scale", -1.0),
        ("model.norm.weight", np.inf),
    ],
)
def test_a_damaged_tensor_is_named(
    model_file: Path, name: str, value: float, tmp_path: Path
) -> None:
    model = tmp_path / "model.trilobit"
    shutil.copy(model_file, model)
    change(model, name, lambda values: np.full_like(values, value))
    done = trilobit("verify", model)
    assert done.returncode == 1
    assert "WRONG" in done.stdout
    assert name.removesuffix("_scale").removesuffix(".weight") in done.stdout
    assert "2 of 2 checks failed" in done.stdout


def test_a_code_that_is_no_weight_is_named(model_file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.trilobit"
    shutil.copy(model_file, model)
    info = PackedModel(model).file.info("model.layers.0.self_attn.k_proj.weight")
    with open(model, "r+b") as out:
        out.seek(info.begin + 5)
        out.write(b"\xff")
    assert verified(model) == (1, {"checksums": False, "weights": False})


@pytest.mark.parametrize("published", [True, False])
def test_checksums_of_a_download_are_those_of_its_blobs(
    checkpoint: Path, published: bool, tmp_path: Path
) -> None:
    """Laid out as huggingface_hub does: links to files that are named by their SHA-256."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        blob = tmp_path / "blobs" / hashlib.sha256(data).hexdigest()
        if not published and path.name == "model.safetensors":
            data = data[:-1] + bytes([data[-1] ^ 1])
        blob.write_bytes(data)
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    done = trilobit("verify", tmp_path / "snapshot")
    assert done.returncode == (0 if published else 1)
    line = done.stdout.splitlines()[0]
    assert ("3 files as published" if published else "model.safetensors: not what was") in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a JSON object"),
        ("{}", "no list of token ids named 'ids'"),
        ('{"ids": []}', "ids are not token ids"),
        ('{"ids": [1, "2"]}', "ids are not token ids"),
        ('{"ids": [1], "mean_logits": [1, 2]}', "2 mean_logits for 1 ids"),
        ('{"ids": [1], "mean_logits": [NaN]}', "not all numbers"),
        ('{"ids": [1], "first_tolerance": "x"}', "not all numbers"),
        ('{"ids": [1], "answer": "x"}', "chat and answer come together"),
        ('{"ids": [1], "answer": 1, "chat": 2}', "chat and answer are not texts"),
        ('{"ids": [1], "perplexity": true}', "perplexity is not a number"),
        ('{"ids": [1], "logits": []}', "unknown field 'logits'"),
    ],
)
def test_a_bad_golden_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as error:
        golden.read(path)
    assert str(path) in str(error.value)


def test_bad_input_is_one_line_and_exit_code_2(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "missing; give a packed" in fail("verify", tmp_path / "model.trilobit")
    assert "no such file" in fail("verify", model_file, "--golden", tmp_path / "golden.json")
    # Nothing is verified first: of a large model that takes minutes.
    assert "no such file" in fail("verify", model_file, "--text", tmp_path / "none.txt")
    assert "less than 512 tokens" in fail("verify", model_file, "--text", tmp_path / "empty.txt")


def test_a_text_for_a_model_of_ids_is_refused_first(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path)
    (tmp_path / "some.txt").write_text("word " * 2000)
    line = fail("verify", tmp_path, "--text", tmp_path / "some.txt")
    assert f"{tmp_path}: has no tokenizer; leave out the text, or put its tokenizer" in line


# ---- what is known ----------------------------------------------------------------------------


def published_2b_4t() -> ModelConfig:
    return dataclasses.replace(shape("2b4t"), bos_token_id=128000, eos_token_ids=(128001, 128009))


def test_the_published_model_is_known_by_its_shape() -> None:
    assert golden.known(published_2b_4t()) is golden.BITNET_2B_4T
    for changes in ({"bos_token_id": 0}, {"hidden_act": "silu"}, {"num_hidden_layers": 29}):
        assert golden.known(dataclasses.replace(published_2b_4t(), **changes)) is None
    assert golden.known(tiny_config()) is None


def test_numbers_agree_within_a_tolerance_that_grows_with_them() -> None:
    assert golden.farthest([1.0, 2.0], [1.0, 2.02], 0.01) == (1, True)
    assert golden.farthest([1.0, 2.0], [1.03, 2.0], 0.01) == (0, False)
    assert golden.farthest([math.nan, 2.0], [1.0, 2.0], 0.01) == (0, False)


THINGS = "dog cat ball house tree bird boat cake car hat bear girl boy fish frog king moon".split()
SIZES = "big small red blue happy sad old new lost".split()
