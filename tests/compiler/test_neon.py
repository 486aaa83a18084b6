"""NEON builds of every kernel family, run on an emulated ARM core and compared with the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import neon
import pytest
from conv_cases import masks, patterns
from harness import Bundle, describe, differences, fused, scratch_bytes
from random_cases import network

from blockpunch.compiler import Choice, compile_graph, schedule
from blockpunch.graph import interpreter
from blockpunch.target import Target


def convolutions() -> Bundle:
    """Pruned and dense 3x3 and 1x1, strides, residuals, activations, a single pixel."""
    b = Bundle(51)
    for i, keep in enumerate(masks(b.rng, 24, 8, (3, 3))):
        x = b.value(1, 8, 9, 7 + i % 2)
        w = b.weights(24, 8, 3, 3, keep=keep)
        b.output(b.conv(x, w, pads=(1, 1, 1, 1), stride=(1 + i % 2,) * 2, epilogue=[fused("Silu")] if i == 3 else []))
    x = b.input(2, 6, 5, 5)
    y = b.conv(x, b.weights(13, 6, 1, 1), epilogue=[fused("Clip", min=0.0, max=6.0)])
    b.output(b.conv(y, b.weights(13, 13, 3, 3), pads=(1, 1, 1, 1), epilogue=[fused("Add", 3), fused("Relu")],
                    operands=[y]))
    b.output(b.conv(x, b.weights(4, 3, 3, 3), pads=(0, 1, 2, 1), groups=2, dilation=(2, 1)),
             b.conv(x, b.weights(7, 6, 5, 5)))
    return b


def depthwise_and_linear() -> Bundle:
    b = Bundle(52)
    for kernel, stride, size in ((3, 1, (14, 13)), (3, 2, (14, 13)), (5, 1, (7, 7)), (5, 2, (9, 17))):
        y = b.conv(b.value(1, 5, *size), b.weights(5, 1, kernel, kernel), pads=(kernel // 2,) * 4,
                   stride=(stride, stride), groups=5, epilogue=[fused("HardSwish")])
        b.output(b.conv(y, b.weights(3, 5, 3, 3), pads=(1, 1, 1, 1)))
    for i, keep in enumerate(masks(b.rng, 20, 33, (1, 1))):
        bias = b.constant(b.rng.normal(size=20))
        b.output(b.node("Linear", b.value(1 + i % 2, 33), b.weights(20, 33, keep=keep[..., 0, 0]), bias))
    return b


def the_rest() -> Bundle:
    b = Bundle(53)
    x, image = b.value(1, 3, 8, 11), b.input(1, 3, 8, 11)
    none = (0, 0, 0, 0)
    b.output(b.node("MaxPool", x, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1), dilation=(1, 1)),
             b.node("MaxPool", image, kernel=(5, 5), stride=(1, 1), pads=(2, 2, 2, 2), dilation=(1, 1)),
             b.node("AveragePool", x, kernel=(2, 2), stride=(2, 2), pads=none, count_include_pad=False),
             b.node("AveragePool", x, kernel=(3, 3), stride=(2, 2), pads=(0, 0, 1, 1), count_include_pad=True),
             b.node("GlobalAveragePool", x), b.node("ReduceMean", x, axes=(1,), keepdims=False))
    for op in ("Sigmoid", "Tanh", "Silu", "Exp", "Erf", "Softplus", "Mish", "Abs", "Relu"):
        b.output(b.node(op, x))
    b.output(b.node("Gelu", x, approximate="none"), b.node("Softmax", x, axis=1),
             b.node("Softmax", b.value(2, 37), axis=1))
    b.output(b.node("Log", b.node("Exp", x)), b.node("Sqrt", b.node("Abs", x)),
             b.node("Div", x, b.node("Add", b.node("Abs", image), b.constant(1.0))))
    b.output(b.node("Resize", x, mode="nearest", coordinates="asymmetric", nearest_rounding="floor", size=(16, 22),
                    scales=(2.0, 2.0)),
             b.node("Resize", x, mode="linear", coordinates="half_pixel", nearest_rounding="floor", size=(5, 19),
                    scales=(5 / 8, 19 / 11)))
    b.output(b.node("MatMul", b.value(2, 5, 6), b.value(2, 6, 9)), b.node("Transpose", x, perm=(0, 2, 3, 1)))
    return b


@pytest.mark.parametrize(("bundle", "target", "ranges"), [
    (convolutions, "aarch64", 1), (depthwise_and_linear, "cortex-a76", 3), (the_rest, "aarch64", 2),
    (lambda: network(7), "cortex-a55", 1)], ids=["convolutions", "depthwise_and_linear", "the_rest", "network"])
def test_same_as_the_interpreter(bundle: Callable[[], Bundle], target: str, ranges: int) -> None:
    check(bundle(), target, ranges)


def test_kernel_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_WORST", 1e9)
    b = patterns()
    options = compile_graph(b.graph, Target.named("cortex-a76")).options
    check(b, "cortex-a76", 2, {name: next(c for c in item.choices if c.form == "patterns")
                               for name, item in options.items()
                               if any(c.form == "patterns" for c in item.choices)})


def check(b: Bundle, target: str, ranges: int, choices: dict[str, Choice] | None = None) -> None:
    inputs = b.sample()
    expected = list(interpreter.run(b.graph, inputs).values())
    program = compile_graph(b.graph, Target.named(target), threads_hint=ranges, choices=choices)
    shapes = [shape for _, shape in program.outputs]
    found = neon.run_model(program.source, program.weights, scratch_bytes(program, ranges), inputs, shapes,
                           target=target, ranges=ranges)
    wrong = {describe(b.graph, name): error for name, error in differences(b.graph, found, expected).items()
             if error > 2e-5}
    assert not wrong


def test_the_vectors_are_neon() -> None:
    b = convolutions()
    program = compile_graph(b.graph, Target.named("aarch64"))
    assert "arm_neon.h" in program.source["model.c"] and "immintrin" not in program.source["model.c"]
