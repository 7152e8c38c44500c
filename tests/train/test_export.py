"""What training writes, anyone can read: stock transformers, our converter, our engine."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from fables import (
    HELD_OUT,
    RECIPE,
    WINDOW,
    Run,
    one_error,
    train,
    write_recipe,
)
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from trilobit import LLM
from trilobit.conversion import convert
from trilobit.errors import OutputError, RecipeError, UnsupportedModel
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.open import open_source
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.packed.writer import write_packed
from trilobit.model import ternary
from trilobit.nn import bit_linears, swap_linears
from trilobit.train.data.bpe import as_hugging_face
from trilobit.train.export import Trained, pack_published, save_masters, save_packed
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe
from trilobit.train.start import Start

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = ["model", "packed"]


@pytest.fixture(scope="module")
def ids(run: Run) -> Tensor:
    """The held-out windows, `[N, WINDOW]`."""
    tokens = np.load(run.output / "corpus" / "held_out.npy").astype(np.int64)
    whole = len(tokens) // WINDOW * WINDOW
    return torch.from_numpy(tokens[:whole]).reshape(-1, WINDOW)


@pytest.fixture(scope="module")
def trained(run: Run) -> Any:
    """The model as it was trained: our layers around the masters of the last checkpoint."""
    vocab_size = json.loads((run.output / "model" / "config.json").read_text())["vocab_size"]
    model = build_model(load_recipe(run.recipe), vocab_size, bos=0, eos=1)
    state = load_file(run.output / "checkpoint-120" / "model.safetensors")
    missing, unexpected = model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in state.items()}, strict=False
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    return model.eval()


@pytest.fixture(scope="module")
def expected(trained: Any, ids: Tensor) -> Tensor:
    return stock.logits(trained, ids)


def assert_same_but_for_ties(ours: Tensor, theirs: Tensor) -> None:
    """Equal to float32's rounding, at all but a few tokens where a rounding tie fell apart.

    Two readings of a model add up floats in different orders: sums of at most a hundred terms,
    through two layers, give logits below 20 to some 1e-6. But stock transformers also rounds
    its activation scale twice (`127 / max` is a reciprocal times 127 in torch), so an input
    that lies within 1e-5 of a step from the middle between two codes may get the other one.
    That happens to one in 1e5 of the 320 inputs of a token, so twice in 500 tokens, and it
    moves the logits of that token and of those after it in its window: 5 % of the tokens in
    all, by less than 0.1. Had a weight another code, or a scale another meaning, it would be
    every token, and by more.
    """
    difference = (ours - theirs).abs().amax(dim=-1)
    same = difference <= 1e-4
    assert same.float().mean() >= 0.8
    assert difference.max() <= 0.1


# ---- stock transformers -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FORMS)
def theirs(request: pytest.FixtureRequest, run: Run, ids: Tensor) -> Tensor:
    """Logits of stock transformers, from either form of the result."""
    return stock.logits(stock.load(run.output / request.param), ids)


def test_stock_transformers_gives_the_logits_of_training(theirs: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1  # the model has something to say
    assert_same_but_for_ties(theirs, expected)


def test_stock_transformers_gives_the_perplexity_of_training(
    run: Run, theirs: Tensor, ids: Tensor
) -> None:
    told = json.loads(run.outcome.out)["held_out_perplexity"]
    # float32 means are good for 1e-6; a tie changes one token's loss by some 1e-3, which is
    # 1e-5 of the mean of more than 500.
    assert told == pytest.approx(math.exp(stock.held_out_loss(theirs, ids)), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_tokenizer_comes_along(run: Run, form: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.output / form)
    ids = tokenizer(HELD_OUT[0]).input_ids
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == HELD_OUT[0]


def test_config_declares_the_published_layout(run: Run) -> None:
    for form, mode in zip(FORMS, ("online", "offline"), strict=True):
        config = json.loads((run.output / form / "config.json").read_text())
        assert config["architectures"] == ["BitNetForCausalLM"]
        assert config["quantization_config"] == {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": mode,
        }
        assert config["tie_word_embeddings"] is True
        assert config.get("use_cache", True) is True  # which it is where nothing is said


def test_packed_tensors_are_the_codes_and_mean_of_the_masters(run: Run) -> None:
    masters = load_file(run.output / "model" / "model.safetensors")
    packed = load_file(run.output / "packed" / "model.safetensors")
    projections = {name for name in masters if name.endswith("_proj.weight")}
    assert len(projections) == 14
    assert set(packed) == set(masters) | {f"{name}_scale" for name in projections}
    for name, master in masters.items():
        if name not in projections:
            np.testing.assert_array_equal(packed[name], master)
            continue
        codes, scale = ternary.absmean_ternary(master)
        quarter = len(codes) // 4
        for i in range(4):
            stored = (packed[name] >> 2 * i & 3).astype(np.int8) - 1
            np.testing.assert_array_equal(stored, codes[i * quarter : (i + 1) * quarter])
        assert packed[f"{name}_scale"].tolist() == [scale]
        assert scale == pytest.approx(np.abs(master).mean(), rel=1e-6)  # float32 sums


# ---- our converter and engine -------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(run: Run) -> LLM:
    return LLM(run.output.parent / "fables.trilobit", kv_dtype="f32", threads=1)


def test_engine_gives_the_logits_of_training(engine: LLM, ids: Tensor, expected: Tensor) -> None:
    ours = np.stack([engine.logits(window.tolist()) for window in ids])
    # Both round the activations as the definition does, so no tie can fall apart between
    # them by that; float32 sums may still differ before the rounding.
    assert_same_but_for_ties(torch.from_numpy(ours), expected)


def test_engine_gives_the_perplexity_of_transformers(
    engine: LLM, theirs: Tensor, ids: Tensor
) -> None:
    scores = [engine.score(window.tolist()) for window in ids]
    # Of all but each window's first token and those that begin a document: see stock.py.
    counted = [
        logprob
        for window, score in zip(ids.tolist(), scores, strict=True)
        for token, logprob in zip(window[-len(score.logprobs) :], score.logprobs, strict=True)
        if token != 0
    ]
    loss = -sum(counted) / len(counted)
    # As between training and transformers: see above.
    assert math.exp(loss) == pytest.approx(math.exp(stock.held_out_loss(theirs, ids)), rel=1e-4)


def test_masters_and_packed_codes_convert_to_the_same_model(run: Run, tmp_path: Path) -> None:
    arrays = []
    for form in FORMS:
        convert(run.output / form, tmp_path / form, "packed")
        arrays.append(PackedModel(tmp_path / form).arrays())
    from_masters, from_packed = arrays
    assert from_masters.keys() == from_packed.keys()
    for name, array in from_masters.items():
        np.testing.assert_array_equal(array, from_packed[name], err_msg=name)


# ---- other models and layers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(run: Run) -> Any:
    return as_hugging_face(run.output / "corpus" / "tokenizer.json", WINDOW)


def _llama(**options: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        initializer_range=0.2,
        attention_bias=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    swap_linears(model, **options)
    with torch.no_grad():
        for _, layer in bit_linears(model):
            if layer.rms_norm is not None:
                layer.rms_norm.weight.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"rms_norm_eps": 1e-6}, {"keep": ("down_proj",)}],
    ids=["plain", "norms", "some-kept-float"],
)
@pytest.mark.parametrize("save", [save_masters, save_packed])
def test_stock_transformers_reads_any_swapped_model(
    tmp_path: Path, tokenizer: Any, ids: Tensor, options: dict[str, Any], save: Any
) -> None:
    model = _llama(**options)
    save(model, tokenizer, tmp_path)
    assert_same_but_for_ties(stock.logits(stock.load(tmp_path), ids), stock.logits(model, ids))


def test_packed_sign_weights_give_the_same_logits_everywhere(
    run: Run, tmp_path: Path, ids: Tensor
) -> None:
    recipe = write_recipe(tmp_path, 'weights = "sign"\n' + RECIPE)
    file = tmp_path / "sign.trilobit"
    assert train(recipe, tmp_path / "run", "--max-steps", "20", "--packed", str(file)).code == 0
    theirs = stock.logits(stock.load(tmp_path / "run" / "packed"), ids)
    engine = LLM(file, kv_dtype="f32", threads=1)
    ours = np.stack([engine.logits(window.tolist()) for window in ids])
    assert_same_but_for_ties(torch.from_numpy(ours), theirs)
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    told = json.loads(log[-1])["held_out_loss"]
    assert told == pytest.approx(stock.held_out_loss(theirs, ids), abs=1e-4)  # 4 digits


def test_masters_of_sign_weights_are_not_taken_for_ternary_ones(
    run: Run, tmp_path: Path, tokenizer: Any
) -> None:
    recipe = dataclasses.replace(load_recipe(run.recipe), weights="sign")
    save_masters(build_model(recipe, 320, bos=0, eos=1), tokenizer, tmp_path)
    with pytest.raises(UnsupportedModel, match="bitnet_sign"):
        convert(tmp_path, tmp_path / "out")


def test_float_models_are_saved_as_they_are(tmp_path: Path, tokenizer: Any, ids: Tensor) -> None:
    model = _llama(keep=("model",))
    assert not list(bit_linears(model))
    save_masters(model, tokenizer, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(stock.logits(stock.load(tmp_path), ids), stock.logits(model, ids))
    with pytest.raises(RecipeError, match="no packed form"):
        save_packed(model, tokenizer, tmp_path)


def test_rows_that_do_not_fill_a_byte_are_refused() -> None:
    with pytest.raises(RecipeError, match="has 6 rows"):
        pack_published(torch.zeros(6, 8, dtype=torch.int8))


def test_a_model_without_a_tokenizer_is_saved_whole(tmp_path: Path, ids: Tensor) -> None:
    model = _llama()
    for save, name in ((save_packed, "packed"), (save_masters, "masters")):
        save(model, None, tmp_path / name)
        logits = stock.logits(stock.load(tmp_path / name), ids)
        assert_same_but_for_ties(logits, stock.logits(model, ids))


def test_weights_may_be_read_by_whom_the_umask_says(tmp_path: Path) -> None:
    for save in (save_packed, save_masters):
        save(_llama(), None, tmp_path / save.__name__)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / save.__name__).iterdir()}
        (tmp_path / "plain").touch()
        assert modes == {(tmp_path / "plain").stat().st_mode & 0o777}


def test_a_save_that_fails_leaves_no_half_folder(tmp_path: Path) -> None:
    model = _llama()

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise Exception("No space left on device (os error 28)")  # as tokenizers says it

    with pytest.raises(OutputError, match="cannot be written"):
        save_packed(model, Broken(), tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_a_trained_model_is_a_source_for_every_writer(
    run: Run, trained: Any, tokenizer: Any, tmp_path: Path
) -> None:
    source = Trained(trained, tokenizer, tmp_path / "run")
    write_packed(source, tmp_path / "ours.trilobit")
    convert(run.output / "packed", tmp_path / "by-way-of-the-folder.trilobit")
    written = [
        PackedModel(tmp_path / name) for name in ("ours.trilobit", "by-way-of-the-folder.trilobit")
    ]
    assert written[0].config == written[1].config
    arrays = [model.arrays() for model in written]
    assert arrays[0].keys() == arrays[1].keys()
    for name, array in arrays[0].items():
        np.testing.assert_array_equal(array, arrays[1][name], err_msg=name)
    write_gguf(source, tmp_path / "ours.gguf")
    assert (tmp_path / "ours.gguf").stat().st_size > 0


# ---- from a checkpoint --------------------------------------------------------------------------


def _continue(folder: Path, start: str, more: str = "") -> tuple[Path, Path]:
    text = RECIPE[: RECIPE.index("[model]")] + RECIPE[RECIPE.index("[data]") :]
    short = text.replace("steps = 120", "steps = 14").replace("[3e-2, 2e-2]", "[1e-3, 1e-3]")
    return write_recipe(folder, f'start = "{start}"\n{more}{short}'), folder / "run"


def test_a_run_starts_from_the_masters_of_another(run: Run, tmp_path: Path) -> None:
    recipe, output = _continue(tmp_path, str(run.output / "model"))
    outcome = train(recipe, output, "--json")
    assert outcome.code == 0, outcome.err
    before = [json.loads(line) for line in (run.output / "log.jsonl").read_text().splitlines()]
    log = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    # Goes on where the other ended, not at the loss of a new model, which is above 5.5.
    assert log[0]["loss"] < before[-2]["loss"] + 0.7
    tokens = [np.load(o / "corpus" / "train.npy").tolist() for o in (run.output, output)]
    assert tokens[0] == tokens[1]
    for form in FORMS:
        assert AutoTokenizer.from_pretrained(output / form).bos_token_id == 0


def test_what_ends_a_text_and_how_tokens_are_chosen_stay_through_training(
    run: Run, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    shutil.copytree(run.output / "model", start)
    said = {"do_sample": True, "temperature": 1.0, "top_k": 50, "eos_token_id": [1, 16]}
    (start / "generation_config.json").write_text(json.dumps(said))
    recipe, output = _continue(tmp_path, str(start))
    packed = tmp_path / "tuned.trilobit"
    outcome = train(recipe, output, "--json", "--packed", str(packed))
    assert outcome.code == 0, outcome.err
    for path in (*(output / form for form in FORMS), packed):
        source = open_source(path)
        assert set(source.config.eos_token_ids) == {1, 16}, path
        assert source.text.sampling.said == {"temperature": 1.0, "top_k": 50}, path


def test_a_run_starts_from_shards_of_a_float_model(tmp_path: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path / "llama"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = Start(folder).model("float").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor.float()), name
    recipe, output = _continue(tmp_path, "llama")
    assert train(recipe, output).code == 0
    assert json.loads((output / "packed" / "config.json").read_text())["model_type"] == "llama"
    convert(output / "packed", tmp_path / "llama.trilobit")


def test_packed_codes_are_no_start(run: Run, tmp_path: Path) -> None:
    recipe, output = _continue(tmp_path, str(run.output / "packed"))
    error = one_error(train(recipe, output))
    assert error.startswith(f"{run.output / 'packed'}: start holds packed codes only, and training")
    assert not output.exists()


def test_the_folder_of_a_run_is_no_start_but_its_masters_are(run: Run, tmp_path: Path) -> None:
    recipe, output = _continue(tmp_path, str(run.output))
    error = one_error(train(recipe, output))
    assert error == (
        f"{run.output}: start is the folder of a training run; give its masters, "
        f"{run.output / 'model'}"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gone",
            "start is no folder here; give the folder of a checkpoint with float weights",
        ),
        ("tokenizer.json", "start has no tokenizer"),
        ("model.safetensors", "no model.safetensors here"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(
    run: Run, tmp_path: Path, name: str, message: str
) -> None:
    if name != "gone":
        shutil.copytree(run.output / "model", tmp_path / "start")
        (tmp_path / "start" / name).unlink()
    recipe, output = _continue(tmp_path, "start")
    error = one_error(train(recipe, output))
    assert error.startswith(str(tmp_path / "start"))
    assert message in error
    assert not output.exists()
