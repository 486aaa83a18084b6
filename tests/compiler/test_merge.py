"""Sums of convolutions become one where that is exact and free, and stay two everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
from harness import Bundle, check, fused

SHAPE = (2, 6, 9, 7)


def residual(b: Bundle, main: str, short: str, taps: int, *, stride: int = 1) -> str:
    """A map of convolutions of two values, added and cut at zero."""
    edge = (taps // 2,) * 4
    other = b.conv(short, b.weights(5, b.graph.shape(short)[1], taps, taps), pads=edge, stride=(stride, stride))
    return b.conv(main, b.weights(5, b.graph.shape(main)[1], taps, taps), pads=edge,
                  epilogue=[fused("Add", 3), fused("Relu")], operands=[other])


def kinds(b: Bundle) -> list[str]:
    return [step.kind for step in check(b, "host").steps]


@pytest.mark.parametrize("taps", [1, 3])
def test_a_convolution_in_the_shortcut_is_merged(taps: int) -> None:
    b = Bundle()
    b.output(residual(b, b.value(*SHAPE), b.node("Relu", b.value(*SHAPE)), taps))
    assert kinds(b).count("conv") == 1


@pytest.mark.parametrize("same_blocks", [True, False])
def test_a_sum_whose_halves_have_blocks_of_different_filters_stays(same_blocks: bool) -> None:
    b, rng = Bundle(), np.random.default_rng(0)
    blocks = np.repeat(rng.random((8, 32, 1, 1)) < 0.25, 4, axis=0)  # 4 filters each have one list of columns
    others = np.repeat(rng.random((8, 32, 1, 1)) < 0.25, 4, axis=0)
    if not same_blocks:
        others = others[rng.permutation(32)]
    x, y = b.value(1, 32, 9, 7), b.node("Relu", b.value(1, 32, 9, 7))
    half, short = (b.weights(*mask.shape, keep=mask) for mask in (blocks, others))
    b.output(b.conv(x, half, epilogue=[fused("Add", 3)], operands=[b.conv(y, short)]))
    assert kinds(b).count("conv") == (1 if same_blocks else 2)


def test_a_strided_shortcut_is_merged() -> None:
    b = Bundle()
    b.output(residual(b, b.value(*SHAPE), b.value(2, 4, 18, 14), 1, stride=2))
    assert kinds(b).count("conv") == 1


def test_the_rest_of_the_epilogue_keeps_its_operands() -> None:
    b = Bundle()
    x, other = b.value(*SHAPE), b.node("Relu", b.value(*SHAPE))
    short = b.conv(other, b.weights(6, 6, 1, 1), bias=False)
    b.output(b.conv(x, b.weights(6, 6, 1, 1), epilogue=[fused("Add", 3), fused("Relu"), fused("Mul", 4)],
                    operands=[short, b.node("Sigmoid", b.value(*SHAPE))]))
    assert kinds(b).count("conv") == 1


def test_a_sum_whose_parts_are_needed_elsewhere_stays() -> None:
    b = Bundle()
    x, other = b.value(*SHAPE), b.node("Relu", b.value(*SHAPE))
    short = b.conv(other, b.weights(6, 6, 1, 1))
    b.output(b.conv(x, b.weights(6, 6, 1, 1), epilogue=[fused("Add", 3)], operands=[short]), b.node("Relu", short))
    same = b.node("Relu", b.value(*SHAPE))
    b.output(b.conv(same, b.weights(6, 6, 1, 1), epilogue=[fused("Add", 3)],
                    operands=[b.conv(same, b.weights(6, 6, 1, 1))]))
    joined = b.node("Concat", other, x, axis=1)
    b.output(b.conv(joined, b.weights(6, 12, 1, 1), epilogue=[fused("Add", 3)],
                    operands=[b.conv(b.node("Abs", x), b.weights(6, 6, 1, 1))]))
    assert kinds(b).count("conv") == 6
