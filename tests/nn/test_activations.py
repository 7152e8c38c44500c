"""Inputs of 4 bits, of the larger half, and turned: as defined, and with the papers' gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trilobit.model import activations as defined
from trilobit.model import ternary
from trilobit.nn import BitLinear, set_activations, set_quantised_share, swap_linears
from trilobit.nn.activations import Activations, hadamard_transform, input_codes

pytestmark = pytest.mark.usefixtures("one_thread")

# Widths that fill no vector or block, powers of two, and three times one.
SHAPES = [(1, 1, 1), (3, 7, 5), (5, 130, 33), (4, 128, 64), (9, 96, 12)]  # tokens, inputs, outputs
DEFINED: dict[Activations, Callable[..., Any]] = {
    "int8": ternary.absmax_int8,
    "int4": defined.absmean_int4,
    "larger half": defined.larger_half_int8,
}
EPS = float(np.finfo(np.float32).eps)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(inputs: int, outputs: int, **options: Any) -> BitLinear:
    layer = BitLinear(inputs, outputs, bias=False, **options)
    with torch.no_grad():
        layer.weight.copy_(_random(outputs, inputs, seed=1) * 0.05 + 0.002)
    return layer


def _turned(x: NDArray[np.float32], hadamard: bool) -> NDArray[np.float32]:
    return defined.hadamard(x) if hadamard else x


@pytest.mark.parametrize("activations", DEFINED)
@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_codes_equal_the_definition(
    activations: Activations, hadamard: bool, tokens: int, inputs: int, outputs: int
) -> None:
    x = _random(tokens, inputs)
    x[0, 0] = 30  # an outlier, cut off where the mean sets the scale
    codes, scale = input_codes(x, activations, hadamard=hadamard)
    expected, expected_scale = DEFINED[activations](_turned(x.numpy(), hadamard))
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


@pytest.mark.parametrize("activations", DEFINED)
@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("weights", ["absmean", "sign"])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_the_product_is_the_definition_bit_for_bit(
    activations: Activations,
    hadamard: bool,
    weights: str,
    tokens: int,
    inputs: int,
    outputs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trilobit.nn.bitlinear._INTEGERS_PAY", True)
    layer = _layer(inputs, outputs, weights=weights, activations=activations, hadamard=hadamard)
    x = _random(tokens, inputs)
    codes, scale = layer.codes()
    expected = ternary.bit_linear(
        _turned(x.numpy(), hadamard), codes.numpy(), scale.numpy(), DEFINED[activations]
    )
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)


def test_four_bits_round_what_is_divided_by_the_mean_and_cut_it_off() -> None:
    # The mean is √7, so that a code stands for 1.
    x = np.array([[7.583, 0.4, -1.6, 1.0], [-7.583, -0.4, 1.6, -1.0]], np.float32)
    codes, scale = defined.absmean_int4(x)
    assert codes.tolist() == [[7, 0, -2, 1], [-8, 0, 2, -1]]
    np.testing.assert_allclose(scale, 1, rtol=1e-4)


def test_the_larger_half_and_what_is_equal_to_its_last_stay() -> None:
    x = np.array([[1.0, -4.0, 2.0, 3.0, -3.0], [0.0, 0.0, 0.0, 127.0, 1.0]], np.float32)
    codes, scale = defined.larger_half_int8(x)
    np.testing.assert_array_equal(codes != 0, [[0, 1, 0, 1, 1], [0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(scale, np.float32(1) / (np.float32(127) / np.float32([4, 127])))


def test_hadamard_is_sylvesters_matrix_over_the_root_of_its_size() -> None:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < 8:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    np.testing.assert_array_equal(
        defined.hadamard(np.eye(8, dtype=np.float32)), matrix * np.float32(1 / np.sqrt(8))
    )
    # 24 columns are three blocks of eight.
    expected = np.kron(np.eye(3, dtype=np.float32), matrix) * np.float32(1 / np.sqrt(8))
    np.testing.assert_array_equal(defined.hadamard(np.eye(24, dtype=np.float32)), expected)


@pytest.mark.parametrize("columns", [1, 7, 96, 128, 130])
def test_hadamard_keeps_lengths_and_is_its_own_inverse(columns: int) -> None:
    x = _random(4, columns)
    turned = hadamard_transform(x)
    # At most eight sums a number, each rounded to eps/2, there and back.
    torch.testing.assert_close(hadamard_transform(turned), x, rtol=0, atol=20 * EPS)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("hadamard", [False, True])
@pytest.mark.parametrize("activations", DEFINED)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradients_equal_the_written_formula(
    share: float,
    activations: Activations,
    hadamard: bool,
    integers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With z = x H or x, ẑ = z + λ(q(z) - z), ŵ likewise, y = ẑ ŵᵀ: ∂w = ∂yᵀ ẑ, ∂x = ∂y ŵ H."""
    monkeypatch.setattr("trilobit.nn.bitlinear._INTEGERS_PAY", integers)
    layer = _layer(48, 18, activations=activations, hadamard=hadamard)
    set_quantised_share(layer, share)
    x, dy = _random(11, 48).requires_grad_(), _random(11, 18, seed=5)
    y = layer(x)
    y.backward(dy)

    turn = partial(_turned, hadamard=hadamard)
    z_TI, w_OI, dy_TO = turn(x.detach().numpy()), layer.weight.detach().numpy(), dy.numpy()
    z_codes, z_scale = DEFINED[activations](z_TI)
    w_codes, w_scale = ternary.absmean_ternary(w_OI)
    zq_TI = z_TI + np.float32(share) * (z_codes * z_scale[:, None] - z_TI)
    wq_OI = w_OI + np.float32(share) * (w_codes * w_scale - w_OI)
    assert x.grad is not None
    assert layer.weight.grad is not None
    for ours, theirs in (
        (y.detach(), zq_TI @ wq_OI.T),
        (layer.weight.grad, dy_TO.T @ zq_TI),
        (x.grad, turn(dy_TO @ wq_OI)),
    ):
        # Sums of at most 48 products and a turn of four sums, after a few roundings of factors.
        bound = 60 * EPS * np.abs(theirs).max() * 8
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=bound)
        assert np.abs(theirs).max() > 0


@pytest.mark.parametrize("activations", DEFINED)
@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 3, 8)])
def test_leading_dimensions_are_as_in_a_linear_layer(
    activations: Activations, shape: tuple[int, ...]
) -> None:
    layer = _layer(8, 5, activations=activations, hadamard=True)
    x = _random(*shape).requires_grad_()
    output = layer(x)
    assert output.shape == (*shape[:-1], 5)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_under_autocast_inputs_are_turned_and_rounded_in_float32() -> None:
    layer = _layer(128, 33, activations="int4", hadamard=True)
    x = _random(5, 128).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    output.sum().backward()
    codes, scale = layer.input_codes(x.detach())
    z = (codes.float() * scale[:, None]).bfloat16().float()
    weight_codes, weight_scale = layer.codes()
    w = (weight_codes * weight_scale).bfloat16().float()
    assert output.dtype == torch.bfloat16
    # The result alone is rounded, by half an eps of 2^-7; the scales' product once in float32.
    torch.testing.assert_close(output.float(), z @ w.T, rtol=2**-7, atol=1e-2 * float(w.max()))
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


class _Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(8, 8)
        self.o_proj = torch.nn.Linear(8, 8)
        self.up_proj = torch.nn.Linear(8, 16)
        self.down_proj = torch.nn.Linear(16, 8)


def test_a_models_inner_layers_are_turned_and_halved() -> None:
    block = _Block()
    swap_linears(block, hadamard=True)
    layers: dict[str, Any] = dict(block.named_children())
    assert [name for name, m in layers.items() if m.hadamard] == ["o_proj", "down_proj"]
    assert {m.activations for m in layers.values()} == {"int8"}
    set_activations(block, "a4.8")
    found = {name: m.activations for name, m in layers.items()}
    assert found["o_proj"] == found["down_proj"] == "larger half"
    assert found["q_proj"] == found["up_proj"] == "int4"
    set_activations(block, "int4")
    assert {m.activations for m in layers.values()} == {"int4"}


def test_what_has_no_inner_layers_is_refused_unchanged() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(ValueError, match="no linear layer is named o_proj or down_proj"):
        swap_linears(model, hadamard=True)
    assert type(model[0]) is torch.nn.Linear
    swap_linears(model)
    with pytest.raises(ValueError, match="no linear layer is named"):
        set_activations(model, "a4.8")
