"""Every ONNX operator that the importer knows, on small odd cases, against ONNX Runtime: opsets 11 to 22."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx_oracle import check_model, check_node, model_of

from blockpunch.graph.onnx_ops import RULES

OPSETS = (11, 13, 17, 22)


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("attrs, weight, bias", [
    ({}, (5, 3, 3, 3), True),
    ({"strides": [2, 2], "pads": [1, 1, 1, 1]}, (4, 3, 3, 3), False),
    ({"pads": [0, 1, 2, 3]}, (2, 3, 3, 2), True),
    ({"dilations": [2, 1], "pads": [2, 0, 2, 0]}, (2, 3, 3, 3), True),
    ({"group": 3}, (3, 1, 3, 3), True),
    ({"group": 3, "strides": [2, 1]}, (6, 1, 3, 5), False),
    ({"strides": [3, 2]}, (7, 3, 1, 1), True),
    ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (2, 3, 3, 4), True),
    ({"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (2, 3, 4, 4), True),
    ({"auto_pad": "VALID"}, (2, 3, 2, 1), False),
])
def test_conv(attrs: dict[str, Any], weight: tuple[int, ...], bias: bool, opset: int) -> None:
    constants = [rand(*weight)] + ([rand(weight[0])] if bias else [])
    check_node("Conv", shapes=[(2, 3, 9, 8)], constants=constants, opset=opset, **attrs)


def draw_window(data: st.DataObject, most: int) -> tuple[Any, ...]:
    """Groups, kernel of up to ``most`` taps a side, dilation, stride and pads."""
    groups, kernel = data.draw(st.integers(1, 3)), data.draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    dilation, stride = (data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in range(2))
    return groups, kernel, dilation, stride, data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_conv(data: st.DataObject) -> None:
    """Any stride, dilation, asymmetric padding and grouping that leaves at least one output pixel."""
    groups, kernel, dilation, stride, pads = draw_window(data, 4)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + 2]) for i in (0, 1)]
    size = [data.draw(st.integers(smallest, 12)) for smallest in least]
    inputs, filters = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    check_node("Conv", shapes=[(data.draw(st.integers(1, 2)), inputs, *size)],
               constants=[rand(filters, inputs // groups, *kernel), rand(filters)], group=groups, strides=stride,
               dilations=dilation, pads=pads)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_transposed_conv(data: st.DataObject) -> None:
    """Any stride, dilation, padding, output padding and grouping that leaves at least one output pixel."""
    groups, kernel, dilation, stride, pads = draw_window(data, 5)
    extra = [data.draw(st.integers(0, stride[i] - 1)) for i in (0, 1)]
    # at least one pixel: (size - 1) * stride + dilation * (kernel - 1) + 1 + extra - pads
    least = [max(1, -(-(pads[i] + pads[i + 2] - extra[i] - dilation[i] * (kernel[i] - 1)) // stride[i]) + 1)
             for i in (0, 1)]
    size = [data.draw(st.integers(smallest, smallest + 4)) for smallest in least]
    inputs, filters = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    check_node("ConvTranspose", shapes=[(data.draw(st.integers(1, 2)), inputs, *size)],
               constants=[rand(inputs, filters // groups, *kernel), rand(filters)], group=groups, strides=stride,
               dilations=dilation, pads=pads, output_padding=extra)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("attrs", [
    {"strides": [2, 2]}, {"strides": [2, 3], "output_shape": [17, 23]}, {"strides": [2, 2], "output_shape": [15, 14]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"}, {"strides": [12, 1], "output_padding": [11, 0], "pads": [96, 0, 0, 0]},
])
def test_transposed_conv_sizes(attrs: dict[str, Any], opset: int) -> None:
    check_node("ConvTranspose", shapes=[(1, 4, 8, 7)], constants=[rand(4, 3, 3, 3)], opset=opset, **attrs)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_layer_norm(axis: int) -> None:
    shape = (2, 3, 5, 6)
    for constants in ([rand(*shape[axis:]), rand(*shape[axis:])], [rand(*shape[axis:])]):
        check_node("LayerNormalization", shapes=[shape], constants=constants, axis=axis, epsilon=1e-3)


def test_group_and_instance_norm() -> None:
    for shape in ((2, 6, 5, 7), (1, 6, 9)):
        check_node("InstanceNormalization", shapes=[shape], constants=[rand(6), rand(6)])
    for groups in (2, 6):
        check_node("GroupNormalization", shapes=[(2, 6, 5, 7)], constants=[rand(6), rand(6)], opset=21,
                   num_groups=groups)
    check_node("GroupNormalization", shapes=[(2, 6, 5, 7)], constants=[rand(2), rand(2)], opset=18, num_groups=2)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("attrs", [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
    {"kernel_shape": [2, 3], "strides": [2, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "dilations": [2, 3]},
    {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
])
def test_max_pool(attrs: dict[str, Any], opset: int) -> None:
    check_node("MaxPool", shapes=[(1, 2, 9, 10)], opset=opset, **attrs)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("attrs", [
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]},
    {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1},
])
def test_average_pool(attrs: dict[str, Any], count: int, opset: int) -> None:
    check_node("AveragePool", shapes=[(1, 2, 9, 10)], opset=opset, count_include_pad=count, **attrs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_pool(data: st.DataObject) -> None:
    """Any window, stride and padding smaller than the window, rounding down or up."""
    kernel, stride = (data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    pads = [data.draw(st.integers(0, kernel[axis % 2] - 1)) for axis in range(4)]
    size = data.draw(st.tuples(st.integers(4, 11), st.integers(4, 11)))
    average = data.draw(st.booleans())
    more = {"count_include_pad": data.draw(st.integers(0, 1))} if average else {}
    check_node("AveragePool" if average else "MaxPool", shapes=[(1, 2, *size)], kernel_shape=kernel, strides=stride,
               pads=pads, ceil_mode=data.draw(st.integers(0, 1)), opset=19 if average else 12, **more)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(op: str) -> None:
    check_node(op, shapes=[(2, 3, 5, 4)])


def test_batch_norm() -> None:
    statistics = [rand(3), rand(3), rand(3), np.abs(rand(3)) + 0.1]
    for opset in OPSETS:
        check_node("BatchNormalization", constants=statistics, opset=opset, epsilon=1e-3)


@pytest.mark.parametrize("opset", (11, 13))
@pytest.mark.parametrize("attrs, weight, bias", [
    ({}, (6, 5), (5,)),
    ({"transB": 1}, (5, 6), None),
    ({"transB": 1, "alpha": 0.5, "beta": 2.0}, (5, 6), (1, 5)),
    ({"beta": 3.0}, (6, 5), (4, 1)),
    ({}, (6, 5), (4, 5)),
    ({}, (6, 5), (1,)),
    ({}, (6, 1), (4, 1)),
    ({}, (6, 4), (4, 1)),
    ({}, (6, 4), (4,)),
])
def test_gemm(attrs: dict[str, Any], weight: tuple[int, ...], bias: tuple[int, ...] | None, opset: int) -> None:
    constants = [rand(*weight)] + ([rand(*bias)] if bias else [])
    check_node("Gemm", shapes=[(4, 6)], constants=constants, opset=opset, **attrs)


def test_gemm_of_transposed_input() -> None:
    check_node("Gemm", shapes=[(6, 4)], constants=[rand(6, 5), rand(5)], transA=1)


def test_products() -> None:
    check_node("MatMul", shapes=[(4, 6)], constants=[rand(6, 5)])
    check_node("MatMul", shapes=[(2, 3, 6)], constants=[rand(6, 5)])
    check_node("MatMul", shapes=[(2, 3, 6)], constants=[rand(2, 6, 5)])
    check_node("MatMul", shapes=[(2, 1, 3, 6), (4, 6, 5)])
    check_node("MatMul", shapes=[(6, 5)], constants=[rand(4, 6)], constants_first=True)


UNARY = [
    ("Relu", {}, 11), ("Sigmoid", {}, 11), ("Tanh", {}, 11), ("HardSigmoid", {}, 11),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 22), ("LeakyRelu", {}, 11), ("LeakyRelu", {"alpha": 0.3}, 16),
    ("Elu", {"alpha": 0.7}, 11), ("Exp", {}, 13), ("Neg", {}, 13), ("Abs", {}, 13), ("Erf", {}, 13),
    ("Softplus", {}, 11), ("HardSwish", {}, 14), ("HardSwish", {}, 22), ("Mish", {}, 18), ("Gelu", {}, 20),
    ("Sin", {}, 11), ("Cos", {}, 11),
    ("Gelu", {"approximate": "tanh"}, 20), ("Identity", {}, 13), ("Dropout", {}, 13), ("Cast", {"to": 1}, 13),
]


@pytest.mark.parametrize("op, attrs, opset", UNARY)
def test_unary(op: str, attrs: dict[str, Any], opset: int) -> None:
    check_node(op, shapes=[(2, 3, 4)], opset=opset, low=-5.0, high=5.0, **attrs)


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_unary_of_positive(op: str) -> None:
    check_node(op, shapes=[(2, 3, 4)], low=0.1, high=3.0)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow"])
def test_binary(op: str) -> None:
    for opset in (11, 14):
        check_node(op, shapes=[(2, 3, 4, 5), (3, 1, 5)], opset=opset, low=0.5)
    for constant in (rand(1) + 2, rand(3, 1, 1) + 2, np.float32(1.5), rand(2, 3, 4, 5) + 2):
        for first in (False, True):
            check_node(op, shapes=[(2, 3, 4, 5)], constants=[constant], constants_first=first, low=0.5)
    check_node(op, shapes=[(3, 4)], constants=[rand(2, 1, 1) + 2], low=0.5)


@pytest.mark.parametrize("op", ["Min", "Max", "Sum", "Mean"])
def test_chains(op: str) -> None:
    check_node(op, shapes=[(2, 3)])
    check_node(op, shapes=[(2, 3), (1, 3), (2, 1)], opset=13)
    check_node(op, shapes=[(2, 3)], constants=[floats(0.25)])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("constants", [[], [np.float32(-1)], [None, np.float32(0.5)], [np.float32(0), np.float32(6)],
                                       [np.float32(0)]])
def test_clip(constants: list[Any], opset: int) -> None:
    check_node("Clip", constants=constants, opset=opset)


def test_prelu() -> None:
    check_node("PRelu", constants=[rand(3, 1, 1)], opset=11)
    check_node("PRelu", constants=[rand(1)])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", OPSETS)
def test_softmax(op: str, opset: int) -> None:
    for axis in (None, 1, -1, 2):
        check_node(op, shapes=[(2, 3, 4, 5)], opset=opset, **({} if axis is None else {"axis": axis}))


def test_reshape() -> None:
    for opset in (11, 14):
        check_node("Reshape", shapes=[(2, 3, 4)], constants=[ints(0, -1, 2)], opset=opset)
    check_node("Reshape", shapes=[(2, 3, 4)], constants=[ints(24)], allowzero=1)


def test_flatten() -> None:
    for axis in (0, 1, 3, -1, -4, 4):
        check_node("Flatten", shapes=[(2, 3, 4, 5)], axis=axis)


def test_squeeze_and_unsqueeze() -> None:
    check_node("Squeeze", shapes=[(1, 3, 1, 2)], opset=11, axes=[0, -2])
    check_node("Squeeze", shapes=[(1, 3, 1, 2)], opset=13, constants=[ints(2)])
    check_node("Squeeze", shapes=[(1, 3, 1, 2)], opset=13)
    check_node("Unsqueeze", shapes=[(3, 2)], opset=11, axes=[0, 3])
    check_node("Unsqueeze", shapes=[(3, 2)], opset=13, constants=[ints(-1, 1)])


def test_transpose() -> None:
    check_node("Transpose", shapes=[(2, 3, 4)])
    check_node("Transpose", shapes=[(2, 3, 4, 5)], perm=[0, 2, 3, 1])


def test_concat() -> None:
    check_node("Concat", shapes=[(1, 2, 3), (1, 4, 3)], axis=1)
    check_node("Concat", shapes=[(1, 2, 3)], constants=[rand(1, 2, 2)], axis=-1)


@pytest.mark.parametrize("starts, ends, axes, steps", [
    ((1,), (4,), (2,), None), ((0, 1), (-1, 1000), (-2, -1), (1, 2)), ((-3,), (10 ** 12,), (3,), (1,)),
    ((-1,), (-10 ** 12,), (2,), (-1,)), ((4, 0), (0, 3), (3, 1), (-2, 2)), ((0, 1), (1, 2), None, None)])
def test_slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None,
               steps: tuple[int, ...] | None) -> None:
    constants = [ints(*starts), ints(*ends), None if axes is None else ints(*axes)]
    check_node("Slice", shapes=[(1, 3, 5, 6)], constants=constants if steps is None else [*constants, ints(*steps)])


def test_split() -> None:
    check_node("Split", shapes=[(1, 6, 2)], opset=11, outputs=2, axis=1)
    check_node("Split", shapes=[(1, 6, 2)], opset=11, outputs=2, axis=1, split=[1, 5])
    check_node("Split", shapes=[(1, 6, 2)], opset=13, outputs=3, axis=-2, constants=[ints(1, 2, 3)])
    check_node("Split", shapes=[(1, 7, 2)], opset=18, outputs=3, axis=1, num_outputs=3)


def test_gather() -> None:
    """By one slice, by several, and with indices of two axes."""
    for indices in (ints(0, 2, 1), ints(3, 3, 0), ints(0, 1, 4, 2, 3), ints(0, 2, 4, 1, 3), np.array([[0, 1], [4, 2]])):
        check_node("Gather", shapes=[(2, 5, 3)], constants=[indices], axis=1)
    check_node("Gather", shapes=[(2, 5, 3)], constants=[ints(1, 3)], axis=1)
    check_node("Gather", shapes=[(2, 5, 3)], constants=[ints(4, 3, 2, 1, 0)], axis=1)
    check_node("Gather", shapes=[(2, 5, 3)], constants=[np.array(-1)], axis=1)
    check_node("Gather", shapes=[(2, 5, 3)], constants=[np.array(1)])


def test_pad() -> None:
    for opset in (11, 13):
        check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(0, 0, 1, 2, 0, 1, 3, 0), np.float32(0.5)], opset=opset)
    check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(0, 0, 1, -1, 0, 0, -1, 2)])
    check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(1, 2, 3, 4), None, ints(2, -1)], opset=18)
    check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(*[0] * 8)], mode="reflect")
    for mode in ("reflect", "edge"):
        check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(0, 0, 1, 2, 0, 1, 2, 3)], mode=mode)
        check_node("Pad", shapes=[(1, 2, 3, 4)], constants=[ints(0, 0, 0, -1, 0, 0, 1, 0)], mode=mode)
    check_node("Pad", shapes=[(1, 2, 3)], constants=[ints(0, 0, 4, 0, 0, 5)], mode="edge")


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"])
def test_reduce(op: str) -> None:
    as_input = 13 if op == "ReduceSum" else 18
    for axes in ((2, 3), (-1,), (1, 2)):
        for keep in (0, 1):
            check_node(op, shapes=[(2, 3, 4, 5)], opset=11, axes=list(axes), keepdims=keep)
            check_node(op, shapes=[(2, 3, 4, 5)], opset=as_input, constants=[ints(*axes)], keepdims=keep)
    check_node(op, shapes=[(2, 3)], opset=as_input)
    check_node(op, shapes=[(2, 3)], opset=as_input, noop_with_empty_axes=1)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes(op: str) -> None:
    for keep in (0, 1):
        check_node(op, shapes=[(2, 3, 4, 5)], opset=13, axes=[-1, 1], keepdims=keep)
        check_node(op, shapes=[(2, 3, 4, 5)], opset=18, constants=[ints(2, 3)], keepdims=keep)
    check_node(op, shapes=[(2, 3)], opset=18)
    check_node(op, shapes=[(2, 3)], opset=18, noop_with_empty_axes=1)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op, constants, attrs", [
    ("Conv", [(6, 4, 3), (6,)], {"strides": [2], "pads": [1, 2]}),
    ("Conv", [(8, 2, 5)], {"group": 2, "strides": [2], "auto_pad": "SAME_UPPER"}),
    ("Conv", [(8, 1, 4)], {"group": 4, "dilations": [2]}),
    ("ConvTranspose", [(4, 6, 4), (6,)], {"strides": [2], "pads": [1, 1], "output_padding": [1]}),
    ("ConvTranspose", [(4, 6, 3)], {"strides": [2], "output_shape": [22]}),
    ("MaxPool", [], {"kernel_shape": [3], "strides": [2], "pads": [1, 0], "ceil_mode": 1}),
    ("AveragePool", [], {"kernel_shape": [4], "strides": [3], "pads": [1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", [], {}), ("GlobalMaxPool", [], {}),
    ("Resize", [None, floats(1, 1, 2.5)], {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ("Resize", [None, None, ints(2, 4, 17)], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}),
])
def test_lines(op: str, constants: list[Any], attrs: dict[str, Any], opset: int) -> None:
    """Operators on [N, C, L] are those of images of one row."""
    if op == "Resize":
        given = [floats() if item is None and opset == 11 else item for item in constants]
    else:
        given = [rand(*shape) for shape in constants]
    check_node(op, shapes=[(2, 4, 11)], constants=given, opset=opset, **attrs)


COORDINATES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")


@pytest.mark.parametrize("opset", (11, 13, 19))
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("target", [(2.0, 2.0), (1.5, 0.6), (3, 9), (1, 4)])
def test_resize(target: tuple[float, float], coordinates: str, opset: int) -> None:
    shape = (1, 2, 5, 6)
    constants: list[Any] = ([floats(), ints(*shape[:2], *target)] if isinstance(target[0], int)
                            else [floats(1, 1, *target)])
    empty = floats() if opset == 11 else None
    for mode, rounding in (("linear", "floor"), ("nearest", "floor"), ("nearest", "ceil"),
                           ("nearest", "round_prefer_floor"), ("nearest", "round_prefer_ceil")):
        check_node("Resize", shapes=[shape], constants=[empty, *constants], opset=opset, mode=mode,
                   nearest_mode=rounding, coordinate_transformation_mode=coordinates)


def test_resize_of_some_axes() -> None:
    check_node("Resize", shapes=[(1, 2, 3, 4)], constants=[None, floats(2, 3)], opset=18, axes=[2, 3])


def test_operators_of_old_opsets() -> None:
    """Below opset 11 attributes stand where inputs are today; such files are read as far as that goes."""
    check_node("Upsample", shapes=[(1, 2, 3, 4)], constants=[floats(1, 1, 2, 3)], opset=9)
    check_node("Upsample", shapes=[(1, 2, 3, 4)], opset=7, scales=[1.0, 1.0, 2.0, 2.0])
    check_node("Clip", opset=10, min=-1.0, max=0.5)
    check_node("Pad", shapes=[(1, 2, 3, 4)], opset=10, pads=[0, 0, 1, 2, 0, 0, 0, 1], value=0.5)
    check_node("Slice", shapes=[(1, 2, 6, 4)], opset=9, starts=[1], ends=[-1], axes=[2])


def test_shuffles() -> None:
    check_node("DepthToSpace", shapes=[(1, 8, 2, 3)], blocksize=2)
    check_node("DepthToSpace", shapes=[(1, 8, 2, 3)], blocksize=2, mode="CRD")
    check_node("SpaceToDepth", shapes=[(1, 2, 4, 6)], blocksize=2)


def test_expand() -> None:
    check_node("Expand", shapes=[(2, 1, 3)], constants=[ints(4, 1, 5, 3)])
    check_node("Expand", shapes=[(2, 3)], constants=[ints(1)])


def test_shape_arithmetic_is_folded() -> None:
    """The chain that exporters write for a flatten: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"]),
             helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
             helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
             helper.make_node("Reshape", ["x", "t"], ["r"]), helper.make_node("Relu", ["r"], ["y"])]
    constants = {"zero": np.array(0), "axes": ints(0), "rest": ints(-1)}
    graph, _ = check_model(model_of(nodes, {"x": (2, 3, 4)}, ["y"], constants))
    assert [node.op for node in graph] == ["Reshape", "Relu"]


def test_grid_is_folded() -> None:
    """Range, Cast, ConstantOfShape, Size and arithmetic on them become one constant."""
    nodes = [helper.make_node("Size", ["x"], ["n"]), helper.make_node("Range", ["zero", "n", "one"], ["r"]),
             helper.make_node("Cast", ["r"], ["f"], to=1), helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
             helper.make_node("ConstantOfShape", ["s"], ["c"], value=onnx.numpy_helper.from_array(floats(3))),
             helper.make_node("Mul", ["f", "c"], ["g"]), helper.make_node("Add", ["x", "g"], ["y"])]
    graph, _ = check_model(model_of(nodes, {"x": (5,)}, ["y"], {"zero": np.array(0), "one": np.array(1)}))
    assert [node.op for node in graph] == ["Add"]


def test_every_rule_is_tested() -> None:
    """A new row of the importer's table needs a case in this file."""
    text = open(__file__).read()  # noqa: PTH123, SIM115
    assert [name for name in RULES if f'"{name}"' not in text and name not in ("CastLike", "Swish")] == []
