"""Depthwise convolutions under bfloat16 autocast: the same numbers, by another backward pass."""

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from blockpunch.pruning.depthwise import DepthwiseInFloat32  # noqa: E402

CASES = {  # channels, filters, groups, kernel, arguments of conv2d
    "depthwise": (6, 6, 6, 3, {"padding": 1}),
    "strided": (5, 5, 5, 5, {"stride": 2, "padding": (2, 2)}),
    "dilated": (4, 4, 4, 3, {"dilation": 2}),
    "two-filters-each": (4, 8, 4, 3, {"stride": (2, 1), "padding": (1, 0)}),
    "same": (4, 4, 4, 3, {"padding": "same"}),
    "grouped": (6, 6, 3, 3, {"padding": 1}),
    "full": (3, 7, 1, 3, {"padding": 1}),
}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float32(case, biased):
    channels, filters, groups, kernel, kwargs = CASES[case]
    torch.manual_seed(0)
    leaves = [torch.randn(3, channels, 9, 11), torch.randn(filters, channels // groups, kernel, kernel)]
    if biased:
        leaves.append(torch.randn(filters))
    results = []
    for watched in (False, True):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        if watched:
            with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
                output = functional.conv2d(*own, groups=groups, **kwargs)
            assert output.dtype == torch.bfloat16
        else:
            output = functional.conv2d(*own, groups=groups, **kwargs)
        output.float().square().mean().backward()
        results.append([output.detach().float(), *(leaf.grad for leaf in own)])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 0.01 * expected.norm()


def test_float32_alone_without_autocast():
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(4, 1, 3, 3)
    with DepthwiseInFloat32():
        assert torch.equal(functional.conv2d(x, weight, groups=4), torch.conv2d(x, weight, groups=4))


def test_backward_is_in_float32():
    """The output's gradient reaches the backward kernel as float32: what the module is for."""
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), DepthwiseInFloat32():
        loss = functional.conv2d(x, weight, padding=1, groups=4).float().square().sum()
    with torch.profiler.profile(record_shapes=True, with_stack=False) as profile:
        loss.backward()
    names = [event.name for event in profile.events()]
    assert "aten::convolution_backward" in names
    weight_grad = weight.grad
    assert weight_grad.dtype == torch.float32
    bits = weight_grad.view(torch.int32) & 0xFFFF
    assert bool(bits.any())  # a bfloat16 kernel would leave the low half empty
