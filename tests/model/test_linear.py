import pytest
import torch

from flexgen_helm.model.linear import laid_out, linear

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("num_rows", [0, 1, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_against_float64(dtype, activation, num_rows, with_bias):
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((num_rows, 64), (97, 64), (97,))
    )
    bias = bias if with_bias else None
    expected = rows.double() @ weight.double().T + (bias.double() if with_bias else 0)
    expected = ACTIVATIONS[activation](expected)
    # bfloat16 keeps 8 bits, and a sum of 64 products is about 8 large.
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    with torch.inference_mode():
        for stored in (weight, laid_out(weight, dtype)):
            actual = linear(rows, stored, bias, activation)
            assert actual.dtype == dtype
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_laying_out_keeps_the_bytes(dtype):
    weight = torch.randn(97, 64).to(dtype)
    stored = laid_out(weight, dtype)
    assert stored.numel() * stored.element_size() == 97 * 64 * dtype.itemsize


def test_what_onednn_does_not_compute_stays_as_it_is():
    weight = torch.randn(97, 64).half()
    assert torch.equal(laid_out(weight, torch.float16), weight)
