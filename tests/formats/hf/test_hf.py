"""Models written as Hugging Face directories: stock transformers and our reader take them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from conftest import tiny_config
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from trilobit import LLM, OutputError, RequestError, UnsupportedModel
from trilobit.conversion import Form, convert, form_of
from trilobit.formats.dtypes import as_float32, from_float32, nearest
from trilobit.formats.hf.divisors import divisor
from trilobit.formats.hf.masters import masters
from trilobit.formats.hf.reader import stores_less_one
from trilobit.formats.hf.writer import SHARD_BYTES, write_hf, write_hf_bf16
from trilobit.formats.open import open_source
from trilobit.formats.packed.writer import write_packed
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names, ternary
from trilobit.model.config import ModelConfig
from trilobit.progress import Progress
from trilobit.synth import synth

# torch warns about itself when it loads what even an uncompiled torch.compile needs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

# What stock transformers knows of the published families, small.
FAMILIES: dict[str, dict[str, Any]] = {
    "bitnet": {},
    "bitnet, untied": {"tie_word_embeddings": False, "eos_token_ids": (1, 9)},
    "llama": {"sub_norms": False, "hidden_act": "silu", "tie_word_embeddings": False},
    "qwen3": {
        "sub_norms": False,
        "hidden_act": "silu",
        "qk_norms": True,
        "projection_norm_eps": 1e-6,
    },
    "gemma3": {
        "sub_norms": False,
        "hidden_act": "gelu_pytorch_tanh",
        "qk_norms": True,
        "post_norms": True,
        "embedding_scale": 60**0.5,
        "query_pre_attn_scalar": 10.0,
        "layer_types": ("sliding_attention", "full_attention"),
        "sliding_window": 16,
        "rope_local_base_freq": 5000.0,
        "projection_norm_eps": 1e-6,
    },
}


class Model:
    """A random model in memory: a Source as any reader could be.

    trained: its scales are means of masters; else any floats, as a file may store them.
    """

    def __init__(self, config: ModelConfig, *, trained: bool) -> None:
        self.path, self.label, self.config = Path("model"), "who made it", config
        self.text, self.float_dtype = TextFiles(), "F32"
        random = np.random.default_rng(0)
        self._projections = {}
        for name, shape in tensor_names.all_projections(config):
            codes, scale = ternary.absmean_ternary(random.standard_normal(shape) / 9)
            stored = scale if trained else np.float32(random.uniform(0.01, 1))
            self._projections[name] = codes, np.array([stored], dtype=np.float32)
        # As Gemma gives them, which stores them less one.
        self._gains = {
            name: np.float32(1) + random.uniform(-0.5, 1, length).astype(np.float32)
            for name, length in tensor_names.all_norms(config)
        }
        size = (config.vocab_size, config.hidden_size)
        self._tables = {
            name: random.standard_normal(size).astype(np.float32)
            for name in tensor_names.tables(config)
        }

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        return self._projections[name]

    def gain(self, name: str) -> NDArray[np.float32]:
        return self._gains[name]

    def table(self, name: str) -> NDArray[Any]:
        return self._tables[name]

    def forget(self) -> None:
        pass


def packed(folder: Path, **changes: Any) -> Path:
    """A packed file whose scales masters give."""
    path = folder / "one.trilobit"
    write_packed(Model(tiny_config(**changes), trained=True), path)
    return path


def assert_same_again(directory: Path, file: Path) -> None:
    """Our reader finds all of the packed file in the directory, to the bit."""
    convert(directory, directory.parent / "again.trilobit")
    assert (directory.parent / "again.trilobit").read_bytes() == file.read_bytes()


def load(directory: Path) -> Any:
    """As anyone loads it; nothing may be missing, left over or of another shape."""
    with stock.not_compiled():
        model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model


def layer_codes_and_scale(layer: Any) -> tuple[NDArray[np.int8], np.float32]:
    """What a layer of stock transformers multiplies with."""
    from transformers.integrations.bitnet import BitLinear, unpack_weights  # see stock.not_compiled

    if isinstance(layer, BitLinear):
        with torch.compiler.set_stance("force_eager"):
            codes = unpack_weights(layer.weight, dtype=torch.float32)
        return codes.to(torch.int8).numpy(), np.float32(1 / float(layer.weight_scale))
    if not layer.online_quant:
        return layer.weight.to(torch.int8).numpy(), np.float32(layer.weight_scale.item())
    return ternary.absmean_ternary(layer.weight.detach().numpy())


# ---- the weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "stored"])
@pytest.mark.parametrize("form", ["hf", "hf-bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_model_is_the_same_to_us_and_to_transformers(
    tmp_path: Path, family: str, form: Form, trained: bool
) -> None:
    source = Model(tiny_config(**FAMILIES[family]), trained=trained)
    write_packed(source, tmp_path / "one.trilobit")
    convert(tmp_path / "one.trilobit", tmp_path / "hf", form)
    assert_same_again(tmp_path / "hf", tmp_path / "one.trilobit")
    model = load(tmp_path / "hf")
    assert model.dtype == torch.float32
    for name, _ in tensor_names.all_projections(source.config):
        codes, scale = source.projection(name)
        found, found_scale = layer_codes_and_scale(model.get_submodule(name))
        assert np.array_equal(found, codes)
        assert found_scale == scale[0]
    for name, _ in tensor_names.all_norms(source.config):
        gain = model.get_parameter(name).detach().numpy()
        assert np.array_equal(gain + stores_less_one(source.config, name), source.gain(name))
    assert np.array_equal(
        model.get_input_embeddings().weight.detach(), source.table(tensor_names.EMBEDDING)
    )
    head = tensor_names.tables(source.config)[-1]
    assert np.array_equal(model.get_output_embeddings().weight.detach(), source.table(head))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_forms_give_the_logits_of_the_engine_s_weights(tmp_path: Path, family: str) -> None:
    """One model, thrice: only how float32 rounds may differ (test_parity compares with ours)."""
    file = packed(tmp_path, **FAMILIES[family])
    ids = torch.tensor([[7, 300, 2, 12, 12, 99, 250, 330, 5]])
    found = []
    for form in ("hf", "hf-bf16"):
        convert(file, tmp_path / form, form)  # type: ignore[arg-type]
        found.append(stock.logits(load(tmp_path / form), ids))
    assert found[0].std() > 0.1
    torch.testing.assert_close(*found, rtol=0, atol=1e-4 * float(found[0].abs().max()))


def quantization(directory: Path) -> tuple[str, str]:
    values = json.loads((directory / "config.json").read_text())["quantization_config"]
    return values["linear_class"], values["quantization_mode"]


def test_scales_divide_where_the_family_is_published_so(tmp_path: Path) -> None:
    for linear_class in ("bitlinear", "autobitlinear"):  # as Falcon3 is, and as it cannot be
        source = Model(tiny_config(**FAMILIES["llama"]), trained=False)
        for name, (codes, _) in source._projections.items():
            # Of 1.9999999 no float32 is the inverse.
            scale = 1 / np.float32(3) if linear_class == "bitlinear" else np.float32(2 - 2**-23)
            source._projections[name] = codes, np.array([scale], dtype=np.float32)
        write_hf(source, tmp_path / linear_class)
        assert quantization(tmp_path / linear_class) == (linear_class, "offline")
    write_hf(Model(tiny_config(), trained=True), tmp_path / "bitnet")
    assert quantization(tmp_path / "bitnet") == ("autobitlinear", "offline")


def test_masters_are_written_where_they_give_the_scales(tmp_path: Path) -> None:
    for trained, mode in ((True, "online"), (False, "offline")):
        write_hf_bf16(Model(tiny_config(), trained=trained), tmp_path / mode)
        assert quantization(tmp_path / mode) == ("autobitlinear", mode)
        tensors = SafetensorsFile(tmp_path / mode / "model.safetensors").tensors
        assert tensors["model.layers.1.mlp.up_proj.weight"].dtype == "BF16"
        assert ("model.layers.1.mlp.up_proj.weight_scale" in tensors) == (mode == "offline")


@pytest.mark.parametrize(
    ("family", "trained", "form", "written", "dtype"),
    [
        ("llama", False, "hf", ("autobitlinear", "offline"), "F32"),
        ("llama", False, "hf-bf16", ("autobitlinear", "offline"), "F32"),
        ("llama", True, "hf-bf16", ("autobitlinear", "online"), "BF16"),
        ("llama", None, "hf", ("bitlinear", "offline"), "BF16"),
    ],
)
def test_the_embedding_is_widened_where_the_document_says_so(
    tmp_path: Path,
    family: str,
    trained: bool | None,
    form: str,
    written: tuple[str, str],
    dtype: str,
) -> None:
    source = Model(tiny_config(**FAMILIES[family]), trained=bool(trained))
    if trained is None:  # scales that divide
        for name, (codes, _) in source._projections.items():
            source._projections[name] = codes, np.array([1 / np.float32(3)])
    source.float_dtype = "BF16"
    source._tables = {
        name: from_float32(nearest(table, "BF16"), "BF16") for name, table in source._tables.items()
    }
    (write_hf_bf16 if form == "hf-bf16" else write_hf)(source, tmp_path / "hf")
    assert quantization(tmp_path / "hf") == written
    tensors = SafetensorsFile(tmp_path / "hf" / "model.safetensors").tensors
    assert tensors[tensor_names.EMBEDDING].dtype == dtype
    assert tensors["model.norm.weight"].dtype == "F32"


def test_masters_of_training_are_not_replaced(tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path / "masters", form="bf16")
    with pytest.raises(OutputError, match="has float masters already; copy the directory"):
        convert(tmp_path / "masters", tmp_path / "hf", "hf-bf16")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("form", ["packed", "bf16"])
def test_a_model_that_bfloat16_holds_is_loaded_as_bfloat16(tmp_path: Path, form: str) -> None:
    synth(tiny_config(), tmp_path / "one", form=form)  # type: ignore[arg-type]
    convert(tmp_path / "one", tmp_path / "two")
    # The mean of bfloat16 masters has more digits than a bfloat16.
    expected = {"packed": torch.bfloat16, "bf16": torch.float32}[form]
    model = load(tmp_path / "two")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {expected}
    assert torch.isfinite(stock.logits(model, torch.tensor([[1, 2, 3]]))).all()


def test_shards_and_their_index(tmp_path: Path) -> None:
    file = packed(tmp_path, tie_word_embeddings=False)
    write_hf(open_source(file), tmp_path / "hf", shard_bytes=60_000)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-0000{n}-of-0000{len(shards)}.safetensors" for n in range(1, len(shards) + 1)
    ]
    assert len(shards) > 3
    sizes = {path: SafetensorsFile(path) for path in shards}
    # Only what is larger by itself has a larger file.
    assert all(s.size_bytes < 64_000 or len(s.tensors) == 1 for s in sizes.values())
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        assert name in sizes[tmp_path / "hf" / shard]
    whole = sum(info.size_bytes for s in sizes.values() for info in s.tensors.values())
    assert index["metadata"]["total_size"] == whole
    assert_same_again(tmp_path / "hf", file)
    load(tmp_path / "hf")


def test_one_shard_of_five_gigabytes_is_no_shard(tmp_path: Path) -> None:
    convert(packed(tmp_path), tmp_path / "hf")
    assert SHARD_BYTES == 5e9
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


# ---- the text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("add_bos", [True, False])
def test_tokenizer_and_template_come_along(tmp_path: Path, checkpoint: Path, add_bos: bool) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    if add_bos:
        (source / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}é\n{% endfor %}"
    (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    convert(source, tmp_path / "one.trilobit")
    convert(tmp_path / "one.trilobit", tmp_path / "hf")
    assert_same_again(tmp_path / "hf", tmp_path / "one.trilobit")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Once upon a time — there was 😀 a dog"
    ours = LLM(tmp_path / "one.trilobit")
    assert ours.tokenizer is not None
    assert theirs.encode(text, add_special_tokens=False) == ours.tokenizer.encode(text)
    messages = [{"role": "user", "content": "hello"}]
    assert theirs.apply_chat_template(messages, tokenize=False) == "user: helloé\n"
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 1)


def test_ends_are_named_in_both_configs(tmp_path: Path) -> None:
    convert(packed(tmp_path, eos_token_ids=(1, 9)), tmp_path / "hf")
    assert load(tmp_path / "hf").generation_config.eos_token_id == [1, 9]


# ---- the place --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"), [("a.trilobit", "packed"), ("a", "hf"), ("b.d/a", "hf"), (".hidden", "hf")]
)
def test_a_name_stands_for_a_form(name: str, form: str) -> None:
    assert form_of(name) == form


def test_a_directory_stands_for_a_directory_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "falcon-1.58bit").mkdir()
    assert form_of(tmp_path / "falcon-1.58bit") == "hf"
    convert(packed(tmp_path), tmp_path / "falcon-1.58bit")
    assert_same_again(tmp_path / "falcon-1.58bit", tmp_path / "one.trilobit")


def test_a_name_of_no_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"the suffix '\.58bit' names no form; .*--to: packed"):
        convert(packed(tmp_path), tmp_path / "falcon-1.58bit")


@pytest.mark.parametrize("there", ["a file", "a full directory", "a link"])
def test_what_is_there_is_kept(tmp_path: Path, there: str) -> None:
    file, out = packed(tmp_path), tmp_path / "hf"
    if there == "a full directory":
        out.mkdir()
        (out / "README.md").write_text("mine")
    elif there == "a link":
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    else:
        out.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"^{out}: .*choose another name"):
        convert(file, out, "hf")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("when", [1, 7, 14])
def test_an_interrupt_leaves_nothing(tmp_path: Path, when: int) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == when:
            raise KeyboardInterrupt

    file = packed(tmp_path)
    for form in ("hf", "hf-bf16"):
        with pytest.raises(KeyboardInterrupt):
            convert(file, tmp_path / "out", form, progress=interrupt)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == [file]


LIMITED = """
import resource, signal, sys
from trilobit import OutputError
from trilobit.conversion import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    convert(sys.argv[1], sys.argv[2])
except OutputError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    file = packed(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{tmp_path}/out/model.safetensors: cannot be written")
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    reason = r"no/such/hf: cannot be written .*; make its folder first, or"
    with pytest.raises(OutputError, match=reason):
        convert(packed(tmp_path), tmp_path / "no" / "such" / "hf")


# ---- what cannot be written -------------------------------------------------------------------


def test_rows_that_do_not_pack_by_four_are_written_as_floats(tmp_path: Path) -> None:
    file = packed(tmp_path, head_dim=6, num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(OutputError, match=r"has 18 rows, .*: --to hf-bf16"):
        convert(file, tmp_path / "hf", "hf")
    convert(file, tmp_path / "bf16", "hf-bf16")
    assert_same_again(tmp_path / "bf16", file)


@pytest.mark.parametrize("form", ["hf", "hf-bf16"])
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"scales": "row"}, "has a scale for each row"),
        ({"scales": "group"}, "has a scale for each group"),
        ({"embedding_scale": 2.0}, "no architecture of this shape"),
    ],
)
def test_what_transformers_has_no_layers_for_is_refused(
    tmp_path: Path, form: Form, changes: dict[str, Any], what: str
) -> None:
    source = Model(tiny_config(), trained=True)
    source.config = tiny_config(**changes)
    write = {"hf": write_hf, "hf-bf16": write_hf_bf16}[form]
    with pytest.raises(UnsupportedModel, match=f"^model: .*{what}"):
        write(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


# ---- masters and divisors ---------------------------------------------------------------------

scales = st.floats(2.0**-15, 2.0**13, width=32).map(np.float32)


@example(scale=np.float32(0.45), seed=4, density=0.3)
@given(scale=scales, seed=st.integers(0, 9), density=st.sampled_from([0.01, 0.3, 0.66, 0.95]))
def test_masters_give_codes_and_scale_to_the_bit(
    scale: np.float32, seed: int, density: float
) -> None:
    random = np.random.default_rng(seed)
    signs = random.choice(np.array([-1, 1], dtype=np.int8), (40, 70))
    codes = signs * (random.random((40, 70)) < density)
    weights = masters(codes, scale)
    one = np.float32(1)
    near = scale.view(np.int32) + np.arange(-9, 10, dtype=np.int32)
    if weights is None:  # then no float is a mean that gives it
        assert not (one / (one / near.view(np.float32)) == scale).any()
        return
    found, found_scale = ternary.absmean_ternary(as_float32(weights, "BF16"))
    assert np.array_equal(found, codes)
    assert found_scale == scale


@given(values=hnp.arrays(np.float32, (20, 30), elements=st.floats(-3, 3, width=32)))
def test_what_was_made_of_masters_has_masters(values: NDArray[np.float32]) -> None:
    codes, scale = ternary.absmean_ternary(values)
    weights = masters(codes, scale)
    if (codes != 0).all() or not codes.any():
        return  # without a zero, or with nothing else, a matrix this small leaves no choice
    assert weights is not None


def test_zeros_have_the_scale_of_the_floor_only() -> None:
    zeros = np.zeros((8, 8), dtype=np.int8)
    floor = ternary.absmean_ternary(zeros.astype(np.float32))[1]
    assert masters(zeros, floor) is not None
    assert masters(zeros, np.float32(0.5)) is None


@given(stored=st.floats(2.0**-13, 2.0**13, width=32), dtype=st.sampled_from(["BF16", "F16", "F32"]))
def test_a_scale_that_was_divided_by_is_found_again(stored: float, dtype: str) -> None:
    value = nearest(np.array([stored], dtype=np.float32), dtype)[0]
    scale = np.float32(1 / np.float64(value))
    found = divisor(scale)
    assert found is not None
    assert np.float32(1 / np.float64(found)) == scale
    if dtype == "BF16":
        assert found == value


@given(scale=scales)
def test_a_scale_without_a_divisor_has_none_near(scale: np.float32) -> None:
    inverse = np.float32(1 / np.float64(scale))
    near = (inverse.view(np.int32) + np.arange(-9, 10, dtype=np.int32)).view(np.float32)
    there = ((1 / near.astype(np.float64)).astype(np.float32) == scale).any()
    assert (divisor(scale) is not None) == there
