"""The table of operators: for each one its shape rule, its meaning in numpy, its multiply-accumulates, prunable or not.

Attributes are plain ints, floats, strings and tuples; axes are never negative.

| operator | inputs | attributes |
|---|---|---|
| Conv | x[N,C,H,W], w[F,C/g,kh,kw], b[F]? | stride, pads=(top, left, bottom, right), dilation, groups |
| Linear | x[..., in], w[out, in], b[out]? | |
| MatMul | a, b | |
| BatchNorm | x, scale, bias, mean, variance | eps |
| MaxPool, AveragePool | x | kernel, stride, pads, dilation (Max), count_include_pad (Average) |
| GlobalAveragePool | x | |
| ReduceMean, ReduceMax | x | axes, keepdims |
| Resize | x | mode, coordinates, nearest_rounding, scales=(sh, sw), size=(height, width) |
| Concat | any number | axis |
| Slice | x | starts, stops, axes, steps (a stop of -1 with a negative step is "past the first element") |
| Pad | x | pads=(before each axis..., after each axis...), value |
| Reshape, Transpose, Softmax | x | shape; perm; axis |
| Add Sub Mul Div Min Max Pow | a, b (numpy broadcasting) | |
| PRelu | x, slope (constant) | |
| Affine, Clip, HardSigmoid | x | scale, shift; min, max; alpha, beta |
| LeakyRelu, Elu, Gelu, other unary operators | x | alpha; alpha; approximate; |
"""

from __future__ import annotations

from blockpunch.graph.operators.elementwise import ELEMENTWISE_OPERATORS
from blockpunch.graph.operators.layout import LAYOUT_OPERATORS, resize_linear, resize_nearest
from blockpunch.graph.operators.table import Operator, Shape, core_inputs
from blockpunch.graph.operators.windows import WINDOW_OPERATORS

OPERATORS: dict[str, Operator] = {
    operator.name: operator for operator in (*WINDOW_OPERATORS, *ELEMENTWISE_OPERATORS, *LAYOUT_OPERATORS)}

__all__ = ["OPERATORS", "Operator", "Shape", "core_inputs", "resize_linear", "resize_nearest"]
