"""BitLinear is what trilobit.model.ternary defines, and its gradient what the papers write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trilobit.model import ternary
from trilobit.nn import BitLinear, absmax, absmean, set_quantised_share, sign

pytestmark = pytest.mark.usefixtures("one_thread")

# Widths that fill no vector, tile or packed block, and one that fills them all.
SHAPES = [(1, 1, 1), (3, 7, 5), (5, 130, 33), (4, 128, 64)]  # tokens, inputs, outputs
QUANTISERS = {
    "absmean": (absmean, ternary.absmean_ternary),
    "sign": (sign, ternary.sign_binary),
}
EPS = float(np.finfo(np.float32).eps)
BF16_EPS = 2.0**-7


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layer(inputs: int, outputs: int, **options: object) -> BitLinear:
    layer = BitLinear(inputs, outputs, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.copy_(_random(outputs, inputs, seed=1) * 0.05 + 0.002)
        if layer.bias is not None:
            layer.bias.copy_(_random(outputs, seed=2))
        if layer.rms_norm is not None:
            layer.rms_norm.weight.copy_(1 + 0.3 * _random(inputs, seed=3))
    return layer


def _numpy(x: torch.Tensor) -> NDArray[np.float32]:
    return x.detach().float().numpy()


def _product_bound(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Most that two float32 evaluations of `x wᵀ` may differ, by element.

    Each of K products and K sums rounds by at most eps/2 of what it adds up; codes times
    scale, the scales' product and the bias are four more. Twice, for two evaluations.
    """
    return (x.shape[-1] + 4) * EPS * (np.abs(x) @ np.abs(w).T)


@pytest.mark.parametrize("weights", QUANTISERS)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_weight_codes_equal_the_definition(
    weights: str, tokens: int, inputs: int, outputs: int
) -> None:
    ours, defined = QUANTISERS[weights]
    weight = _random(outputs, inputs) * 0.05
    codes, scale = ours(weight)
    expected, expected_scale = defined(weight.numpy())
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), expected)
    assert scale.item() == expected_scale


@pytest.mark.parametrize("weights", QUANTISERS)
def test_bfloat16_weights_have_the_codes_of_their_float32_values(weights: str) -> None:
    ours, defined = QUANTISERS[weights]
    weight = (_random(33, 130) * 0.05).bfloat16()
    codes, scale = ours(weight)
    expected, expected_scale = defined(weight.float().numpy())
    np.testing.assert_array_equal(codes.numpy(), expected)
    assert scale.item() == expected_scale


def test_ties_round_to_even_as_the_definition_says() -> None:
    # Mean |W| is 1, so the halves are exact ties: they go to 0, and 1.5 to 2, clamped to 1.
    weight = torch.tensor([[0.5, -0.5, 1.5, -1.5]])
    codes, scale = absmean(weight)
    assert codes.tolist() == [[0, 0, 1, -1]]
    assert scale == 1.0
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert absmax(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_activation_codes_equal_the_definition(
    dtype: torch.dtype, tokens: int, inputs: int, outputs: int
) -> None:
    x = _random(tokens, inputs).to(dtype)
    codes, scale = absmax(x)
    expected, expected_scale = ternary.absmax_int8(x.float().numpy())
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


@pytest.mark.parametrize("weights", QUANTISERS)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_forward_equals_the_definition(
    weights: str, tokens: int, inputs: int, outputs: int
) -> None:
    layer = _layer(inputs, outputs, weights=weights)
    x = _random(tokens, inputs)
    codes, scale = QUANTISERS[weights][1](_numpy(layer.weight))
    np.testing.assert_array_equal(layer.codes()[0].numpy(), codes)
    expected = ternary.bit_linear(x.numpy(), codes, scale) + _numpy(layer.bias)
    bound = _product_bound(x.numpy(), codes * scale) + 2 * EPS * np.abs(expected)
    assert (np.abs(_numpy(layer(x)) - expected) <= bound).all()


@pytest.mark.parametrize("weights", QUANTISERS)
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_the_product_of_integers_is_the_definition_bit_for_bit(
    weights: str, tokens: int, inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilobit.nn.bitlinear._INTEGERS_PAY", True)
    layer = _layer(inputs, outputs, weights=weights, bias=False)
    x = _random(tokens, inputs)
    codes, scale = layer.codes()
    expected = ternary.bit_linear(x.numpy(), codes.numpy(), scale.numpy())
    np.testing.assert_array_equal(_numpy(layer(x)), expected)


@pytest.fixture(params=[False, True], ids=["floats", "integers"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either kind, whatever the processor has."""
    monkeypatch.setattr("trilobit.nn.bitlinear._INTEGERS_PAY", request.param)


@pytest.mark.usefixtures("_products")
def test_forward_of_bfloat16_equals_the_definition() -> None:
    layer = _layer(130, 33).bfloat16()
    x = _random(5, 130).bfloat16()
    codes, scale = ternary.absmean_ternary(_numpy(layer.weight))
    expected = ternary.bit_linear(_numpy(x), codes, scale) + _numpy(layer.bias)
    output = layer(x)
    assert output.dtype == torch.bfloat16
    # Inputs, weights, the sum and the bias's sum round to bfloat16 once each, by half an eps.
    size = np.abs(_numpy(x)) @ np.abs(codes * scale).T + np.abs(_numpy(layer.bias))
    assert (np.abs(_numpy(output) - expected) <= 2 * BF16_EPS * size).all()


def test_norm_comes_before_the_rounding() -> None:
    layer = _layer(130, 33, bias=False, rms_norm_eps=1e-6)
    x = 40 * _random(5, 130)
    assert layer.rms_norm is not None
    normed = _numpy(layer.rms_norm(x))
    root = np.sqrt((x.numpy() ** 2).mean(axis=-1, keepdims=True) + 1e-6)
    # Mean, root, quotient and gain: a few roundings, none larger than an eps of the result.
    np.testing.assert_allclose(normed, x.numpy() / root * _numpy(layer.rms_norm.weight), rtol=8e-7)
    codes, scale = ternary.absmean_ternary(_numpy(layer.weight))
    expected = ternary.bit_linear(normed, codes, scale)
    bound = _product_bound(normed, codes * scale)
    assert (np.abs(_numpy(layer(x)) - expected) <= bound).all()


def test_zero_weights_give_the_bias() -> None:
    layer = _layer(9, 4)
    torch.nn.init.zeros_(layer.weight)
    codes, _ = layer.codes()
    assert codes.tolist() == [[0] * 9] * 4
    assert torch.equal(layer(_random(3, 9)), layer.bias.expand(3, 4))


@pytest.mark.usefixtures("_products")
def test_zero_rows_and_zero_tokens_give_zeros() -> None:
    layer = _layer(9, 4, bias=False)
    with torch.no_grad():
        layer.weight[2] = 0
    x = _random(3, 9)
    x[1] = 0
    output = layer(x)
    assert output[:, 2].tolist() == [0, 0, 0]
    assert output[1].tolist() == [0, 0, 0, 0]
    assert output[0].abs().max() > 0


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 3, 7)])
def test_leading_dimensions_are_as_in_a_linear_layer(shape: tuple[int, ...]) -> None:
    layer = _layer(7, 5)
    x = _random(*shape).requires_grad_()
    output = layer(x)
    assert output.shape == (*shape[:-1], 5)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == layer.weight.shape
    rows = layer(x.detach().reshape(-1, 7))
    # A matrix product may add up in another order for another number of rows.
    torch.testing.assert_close(output.reshape(-1, 5), rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_share_0_is_exactly_a_linear_layer(bias: bool) -> None:
    layer = _layer(130, 33, bias=bias)
    plain = torch.nn.Linear(130, 33, bias=bias)
    plain.load_state_dict(layer.state_dict())
    set_quantised_share(layer, 0.0)
    x = _random(5, 130).requires_grad_()
    y = x.detach().clone().requires_grad_()
    assert torch.equal(layer(x), plain(y))
    layer(x).square().sum().backward()
    plain(y).square().sum().backward()
    for ours, theirs in zip((x, *layer.parameters()), (y, *plain.parameters()), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        # torch's own backward may order its sums otherwise: 130 terms of at most 5.
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-4)


def test_share_1_is_the_quantised_layer() -> None:
    layer = _layer(130, 33)
    before = layer(_random(5, 130))
    set_quantised_share(layer, 0.5)
    assert not torch.equal(layer(_random(5, 130)), before)
    set_quantised_share(layer, 1.0)
    assert torch.equal(layer(_random(5, 130)), before)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_quantised_share(_layer(3, 3), share)


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("weights", QUANTISERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_gradients_equal_the_written_formula(share: float, weights: str, norm: bool) -> None:
    """With n = x / rms(x), z = n g, ẑ = z + λ(q(z) - z), ŵ likewise, y = ẑ ŵᵀ + b:

    ∂b = Σ ∂y,  ∂w = ∂yᵀ ẑ,  ∂z = ∂y ŵ,  ∂g = Σ ∂z n,  ∂x = (∂z g - n mean(∂z g n)) / rms.
    """
    layer = _layer(33, 18, weights=weights, rms_norm_eps=1e-6 if norm else None)
    set_quantised_share(layer, share)
    x = _random(11, 33).requires_grad_()
    dy = _random(11, 18, seed=5)
    y = layer(x)
    y.backward(dy)

    x_TI, dy_TO, w_OI = _numpy(x), _numpy(dy), _numpy(layer.weight)
    rms_T = np.sqrt((x_TI**2).mean(axis=1, keepdims=True) + np.float32(1e-6))
    n_TI = x_TI / rms_T
    # The norm's own output is rounded, so that no tie of the rounding can tell them apart.
    g_I = _numpy(layer.rms_norm.weight) if layer.rms_norm else np.ones(33, np.float32)
    z_TI = _numpy(layer.rms_norm(x)) if layer.rms_norm else x_TI
    codes, scale = QUANTISERS[weights][1](w_OI)
    z_codes, z_scale = ternary.absmax_int8(z_TI)
    zq_TI = z_TI + np.float32(share) * (z_codes * z_scale[:, None] - z_TI)
    wq_OI = w_OI + np.float32(share) * (codes * scale - w_OI)
    dz_TI = dy_TO @ wq_OI
    expected = {"weight": dy_TO.T @ zq_TI, "bias": dy_TO.sum(axis=0)}
    if norm:
        expected["rms_norm.weight"] = (dz_TI * n_TI).sum(axis=0)
        inner_T = (dz_TI * g_I * n_TI).mean(axis=1, keepdims=True)
        dx_TI = (dz_TI * g_I - n_TI * inner_T) / rms_T
    else:
        dx_TI = dz_TI

    # Sums of at most 33 products, each rounded to eps/2, after at most ten roundings of their
    # factors: 43 eps of the largest sum of magnitudes, which is below 33 · max|dy| · max|z|.
    def close(ours: torch.Tensor | None, theirs: NDArray[np.float32], size: float) -> bool:
        assert ours is not None
        return bool(np.abs(_numpy(ours) - theirs).max() <= 43 * EPS * size)

    size = float(np.abs(dy_TO).sum(axis=0).max() * max(np.abs(zq_TI).max(), 1))
    gradients = dict(layer.named_parameters())
    assert gradients.keys() == expected.keys()
    for name, theirs in expected.items():
        assert close(gradients[name].grad, theirs, size), name
        assert np.abs(theirs).max() > 0
    assert close(x.grad, dx_TI, float((np.abs(dy_TO) @ np.abs(wq_OI)).max() * np.abs(g_I).max()))
    y_TO = zq_TI @ wq_OI.T + _numpy(layer.bias)
    assert close(y, y_TO, float((np.abs(zq_TI) @ np.abs(wq_OI).T).max() + 4))


def test_frozen_parameters_get_no_gradient() -> None:
    layer = _layer(7, 5)
    layer.weight.requires_grad_(False)
    x = _random(3, 7)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_autocast_rounds_in_float32_and_multiplies_in_bfloat16() -> None:
    layer = _layer(130, 33, bias=False, rms_norm_eps=1e-6)
    x = _random(5, 130)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert layer.rms_norm is not None
    z_codes, z_scale = ternary.absmax_int8(_numpy(layer.rms_norm(x)))
    codes, scale = ternary.absmean_ternary(_numpy(layer.weight))
    z = _numpy(torch.from_numpy(z_codes * z_scale[:, None]).bfloat16())
    w = _numpy(torch.from_numpy(codes * scale).bfloat16())
    expected = z @ w.T
    # Only the result is rounded to bfloat16, by half an eps. Inputs that were rounded before
    # they were quantised would have other codes, one in twenty here.
    bound = BF16_EPS / 2 * np.abs(expected) + _product_bound(z, w)
    assert (np.abs(_numpy(output) - expected) <= bound).all()


@pytest.mark.usefixtures("_products")
def test_autocast_gradients_are_those_of_float32() -> None:
    layer = _layer(130, 33, rms_norm_eps=1e-6)
    x = _random(5, 130).requires_grad_()
    dy = _random(5, 33, seed=5)
    layer(x).backward(dy)
    full = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    output.backward(dy.bfloat16())
    for theirs, ours in zip(full, (x, *layer.parameters()), strict=True):
        assert theirs is not None
        assert ours.grad is not None
        assert ours.grad.dtype == torch.float32
        # Both factors and the sum round to bfloat16, by half an eps each; the terms' sizes add
        # up to less than eight times the largest gradient here.
        assert (ours.grad - theirs).abs().max() <= 8 * 1.5 * BF16_EPS * theirs.abs().max()


class _KeepsFloats(torch.autograd.Function):
    """The product as its formula says, with x̂ and ŵ kept as floats for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, weights: str, share: float
    ) -> torch.Tensor:
        top = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        x_codes, _ = absmax(x)
        w_codes, scale = QUANTISERS[weights][0](weight)
        # The layer divides by s, and does not multiply by 1/s, which is rounded once more.
        s = 1.0 / weight.abs().mean(dtype=torch.float64).float().clamp(min=1e-5)
        x_hat = x_codes.float() / torch.full_like(top, 127.0).div(top)
        w_hat = w_codes * scale if weights == "sign" else w_codes.float() / s
        if share < 1:
            x_hat, w_hat = x.lerp(x_hat, share), weight.lerp(w_hat, share)
        ctx.save_for_backward(x_hat, w_hat)
        return x_hat @ w_hat.T

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_hat, w_hat = ctx.saved_tensors
        return dy @ w_hat, dy.T @ x_hat, None, None


@pytest.mark.parametrize("weights", QUANTISERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradients_from_kept_codes_equal_those_from_kept_floats(weights: str, share: float) -> None:
    layer = _layer(130, 33, bias=False, weights=weights)
    set_quantised_share(layer, share)
    x, y = (_random(7, 130).requires_grad_() for _ in range(2))
    weight = layer.weight.detach().clone().requires_grad_()
    dy = _random(7, 33, seed=5)
    layer(x).backward(dy)
    _KeepsFloats.apply(y, weight, weights, share).backward(dy)
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer.weight.grad, weight.grad)


@pytest.mark.parametrize("weights", QUANTISERS)
def test_the_backward_pass_keeps_the_parameter_and_codes_of_one_byte(weights: str) -> None:
    layer = _layer(130, 33, bias=False, weights=weights)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(_random(7, 130))
    others = [tensor for tensor in kept if tensor.data_ptr() != layer.weight.data_ptr()]
    assert len(kept) == len(others) + 1
    assert sum(tensor.nbytes for tensor in others) == 7 * 130 + 7 * 4


def test_a_weight_that_changed_before_the_backward_pass_is_an_error() -> None:
    layer = _layer(7, 5)
    output = layer(_random(3, 7))
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("shape", SHAPES)
def test_fixed_weights_have_their_very_codes_and_scale(shape: tuple[int, int, int]) -> None:
    tokens, inputs, outputs = shape
    x = _random(tokens, inputs)
    codes, scale = ternary.absmean_ternary(_numpy(_random(outputs, inputs, seed=1)))
    layer = BitLinear(inputs, outputs, bias=False, weights="fixed")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(codes * scale))
    found, found_scale = layer.codes()
    np.testing.assert_array_equal(found, codes)
    assert float(found_scale) == scale
    expected = ternary.bit_linear(x.numpy(), codes, scale)
    assert np.all(np.abs(_numpy(layer(x)) - expected) <= _product_bound(x.numpy(), codes * scale))


def test_fixed_weights_may_be_zero_everywhere() -> None:
    layer = BitLinear(8, 4, bias=False, weights="fixed")
    with torch.no_grad():
        layer.weight.zero_()
    np.testing.assert_array_equal(_numpy(layer(_random(3, 8))), np.zeros((3, 4)))
