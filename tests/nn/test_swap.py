"""swap_linears makes any Hugging Face causal language model ternary, and it stays that model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from trilobit.nn import BitLinear, bit_linears, set_quantised_share, swap_linears

pytestmark = pytest.mark.usefixtures("one_thread")

# Without biases, with them; head of its own, and tied to the embedding.
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bitnet": lambda: BitNetConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**GROUPED, attention_bias=True),
    "llama-tied": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GROUPED),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, sliding_window=8, tie_word_embeddings=True),
    "gpt-neox": lambda: GPTNeoXConfig(**SHAPE),
}
IDS = torch.arange(3, 23).reshape(2, 10)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()


def test_every_linear_but_the_head_is_swapped(model: Any) -> None:
    linears = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    head = model.get_output_embeddings()
    count = swap_linears(model)
    assert count == len(linears) - 1
    assert model.get_output_embeddings() is head
    assert type(head) is torch.nn.Linear
    names = dict(model.named_modules())
    assert [n for n in linears if type(names[n]) is BitLinear] == [
        n for n in linears if names[n] is not head
    ]


def test_keys_and_values_of_the_state_stay(model: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    swap_linears(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: tensor.data_ptr() for name, tensor in after.items()} == pointers


def test_share_0_gives_the_float_model_exactly(model: Any) -> None:
    with torch.no_grad():
        before = model(IDS).logits
        swap_linears(model)
        set_quantised_share(model, 0.0)
        assert torch.equal(model(IDS).logits, before)
        set_quantised_share(model, 1.0)
        assert not torch.equal(model(IDS).logits, before)


def test_tied_embeddings_stay_tied(model: Any) -> None:
    swap_linears(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_every_parameter_learns(model: Any) -> None:
    swap_linears(model)
    model(IDS, labels=IDS).loss.backward()
    dead = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    # The bias of a key shifts all scores of a query alike, and softmax does not see it.
    assert not [name for name in dead if not name.endswith("k_proj.bias")]


def test_saved_and_loaded_again_it_is_the_same(model: Any, tmp_path: Path) -> None:
    swap_linears(model)
    with torch.no_grad():
        expected = model(IDS).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert not list(bit_linears(again))
        swap_linears(again)
        assert torch.equal(again(IDS).logits, expected)


def test_kept_modules_stay_float() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    count = swap_linears(model, keep=("down_proj", "model.layers.0.self_attn.q_proj"))
    assert count == 14 - 3
    assert type(model.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    assert type(model.model.layers[1].self_attn.q_proj) is BitLinear
    assert type(model.model.layers[1].mlp.down_proj) is torch.nn.Linear
    assert type(model.lm_head) is torch.nn.Linear


def test_norms_and_sign_weights_are_passed_on() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]()).bfloat16().eval()
    swap_linears(model, rms_norm_eps=1e-6, weights="sign")
    for _, layer in bit_linears(model):
        assert layer.weights == "sign"
        assert layer.rms_norm is not None
        assert layer.rms_norm.weight.dtype == torch.bfloat16
        assert layer.rms_norm.weight.tolist() == [1.0] * layer.in_features
        assert not layer.training
    assert model(IDS).logits.isfinite().all()


def test_a_plain_module_can_be_swapped() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    assert swap_linears(model, keep=("2",)) == 1
    assert type(model[0]) is BitLinear
    assert type(model[2]) is torch.nn.Linear


def test_layers_of_other_kinds_that_multiply_are_refused() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' is a Conv1D, which "):
        swap_linears(model)
    assert not list(bit_linears(model))
    experts = AutoModelForCausalLM.from_config(
        MixtralConfig(**GROUPED, num_local_experts=2, num_experts_per_tok=1)
    )
    with pytest.raises(ValueError, match=r"cannot be swapped: only torch.nn.Linear can"):
        swap_linears(experts)
    assert not list(bit_linears(experts))


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no torch.nn.Linear to swap"):
        swap_linears(torch.nn.Sequential(torch.nn.ReLU()))


@pytest.mark.parametrize("keep", [("down_prj",), ("model.layers.7.mlp.up_proj",), "lm_head"])
def test_a_name_to_keep_that_no_layer_has_is_refused(keep: Any) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    with pytest.raises(ValueError, match="keep "):
        swap_linears(model, keep=keep)
    assert not list(bit_linears(model))


# torch's compiler makes what torch's autograd deprecates to make.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_quantisation_warm_up_is_compiled_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    swap_linears(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for share in (0.0, 0.1, 0.25, 0.5, 0.9):
        set_quantised_share(model, share)
        compiled(torch.ones(2, 8)).sum().backward()
    assert counter.frame_count == 1
    set_quantised_share(model, 1.0)
    compiled(torch.ones(2, 8)).sum().backward()
    assert counter.frame_count == 2
