"""Everything that is not a convolution, as bundles of cases (see harness.Bundle)."""

from __future__ import annotations

from conv_cases import ACTIVATIONS
from harness import Bundle, fused

_MORE = (fused("Log"), fused("Sqrt"))
_BINARY = ("Add", "Sub", "Mul", "Div", "Min", "Max")


def positive(b: Bundle, x: str) -> str:
    return b.node("Add", b.node("Abs", x), b.constant(0.1))


def elementwise() -> Bundle:
    """Every operator, with every kind of broadcasting."""
    b = Bundle(11)
    for shape in ((2, 3, 5, 7), (33,), (9000,)):
        x = b.value(*shape)
        for op in ACTIVATIONS if shape == (2, 3, 5, 7) else ACTIVATIONS[:4]:
            b.output(b.node(op.op, x, **op.attrs))
        for op in _MORE:
            b.output(b.node(op.op, positive(b, x), **op.attrs))
    x = b.value(2, 3, 5, 7)
    others = [b.value(2, 3, 5, 7), b.value(2, 3, 1, 1), b.value(2, 1, 5, 7), b.value(1, 3, 1, 7), b.value(5, 1),
              b.value(7), b.value(1), b.value(1, 1, 5, 1), b.value(1, 2, 3, 5, 7), b.input(3, 1, 1),
              b.input(2, 3, 5, 7)]
    others += [b.constant(b.rng.normal(size=shape)) for shape in ((), (1,), (7,), (5, 1), (3, 1, 1), (1, 3, 5, 7),
                                                                 (2, 3, 5, 7), (4, 1, 1, 1, 1))]
    for i, op in enumerate(_BINARY):
        for other in others if op == "Sub" else others[i % 3::3]:
            divisor = b.constant(1.5) if other in b.graph.constants else positive(b, other)
            b.output(b.node(op, x, divisor if op == "Div" else other))
        b.output(b.node(op, others[5], positive(b, others[4])))                         # both sides repeat
        b.output(b.node(op, b.constant(b.rng.normal(size=(3, 1, 1))), positive(b, x)))
        b.output(b.node(op, x, x if op != "Div" else positive(b, x)))
        b.output(b.node(op, b.value(20000), b.constant(2.0)))
        b.output(b.node(op, b.value(1), b.value(1)))
    b.output(b.node("Sub", b.constant(1.0), b.value(3, 11)))
    for epilogue in ((fused("Relu"),), (fused("Silu"), fused("Neg"))):
        b.output(b.node("Add", x, others[1], epilogue=epilogue))
        b.output(b.node("Mul", b.value(4, 9), b.value(9), epilogue=epilogue))
    for slope in ((3, 1, 1), (1,), (5, 7), (2, 3, 5, 7)):
        b.output(b.node("PRelu", x, b.constant(b.rng.normal(size=slope))))
    return b


def powers() -> Bundle:
    """Powers: of negative numbers too, where the exponent allows it."""
    b = Bundle(12)
    x = b.value(2, 3, 4, 5)
    for exponent in (2.0, 3.0, 1.0, 0.0, 4.0, 5.0):
        b.output(b.node("Pow", x, b.constant(exponent)))
    for exponent in (0.5, -1.0, -2.0, 1.7, -0.5):
        b.output(b.node("Pow", positive(b, x), b.constant(exponent)))
    b.output(b.node("Pow", positive(b, x), b.value(2, 3, 4, 5)))
    b.output(b.node("Pow", x, b.constant([2.0])))
    b.output(b.node("Pow", positive(b, x), b.constant([0.5, 1.0, 2.0, 3.0, -1.0])))
    b.output(b.node("Pow", b.constant(2.0), x))
    return b


def concats() -> Bundle:
    """Joined values: in place, nested, shared, of inputs and constants, along any axis."""
    b = Bundle(13)

    def conv(x: str, filters: int, kernel: int = 3) -> str:
        pad = kernel // 2
        return b.conv(x, b.weights(filters, b.graph.shape(x)[1], kernel, kernel), pads=(pad,) * 4)

    x = b.value(2, 4, 6, 7)
    a, c, d = conv(x, 3), conv(x, 5, 1), conv(x, 2, 5)
    joined = b.node("Concat", a, c, d, axis=1)
    b.output(conv(joined, 4, 7), joined, conv(a, 3, 5))                                # a part with its own reader
    nested = b.node("Concat", b.node("Concat", conv(x, 2), conv(x, 1), axis=1), conv(x, 3), axis=1)
    b.output(conv(nested, 3))
    twice = conv(x, 3)
    b.output(conv(b.node("Concat", twice, twice, axis=1), 2), b.node("Concat", twice, conv(x, 1), twice, axis=1))
    shared = conv(x, 2)                                                                # part of two joined values
    b.output(conv(b.node("Concat", shared, conv(x, 1), axis=1), 2),
             conv(b.node("Concat", conv(x, 1), shared, axis=1), 3))
    direct = b.input(2, 4, 6, 7)
    b.output(b.node("Concat", direct, conv(x, 2), direct, axis=1), b.node("Concat", direct, direct, axis=1))
    constant = b.constant(b.rng.normal(size=(2, 3, 6, 7)))
    b.output(conv(b.node("Concat", conv(x, 2), constant, axis=1), 3))
    for axis in range(4):
        b.output(b.node("Concat", conv(x, 4), b.value(2, 4, 6, 7), axis=axis))
    wide = b.node("Concat", conv(x, 4), b.value(2, 4, 6, 7), axis=3)
    b.output(conv(wide, 2))
    for shape, axis in (((1, 6), 1), ((3, 6), 1), ((3, 6), 0), ((5,), 0), ((1, 2, 3), 1), ((2, 2, 3), 2),
                        ((1, 4, 1, 1), 1), ((2, 4, 1, 1), 1), ((1, 1, 2, 3, 4), 2)):
        parts = b.node("Relu", b.value(*shape)), b.node("Abs", b.value(*shape)), b.input(*shape)
        flat = b.node("Concat", *parts, axis=axis)
        b.output(flat, b.node("Neg", flat))
    pixels = b.node("Concat", b.value(1, 2, 1, 1), b.value(1, 3, 1, 1), axis=1)         # one pixel
    b.output(conv(pixels, 3, 1))
    b.output(conv(b.node("Concat", b.value(1, 2, 1, 1), b.value(1, 2, 1, 1), axis=3), 3))  # pixels become a map
    pool = {"kernel": (5, 5), "stride": (1, 1), "pads": (2, 2, 2, 2), "dilation": (1, 1)}
    p1 = b.node("MaxPool", a, **pool)
    p2 = b.node("MaxPool", p1, **pool)
    b.output(conv(b.node("Concat", a, p1, p2, axis=1), 4, 1))
    summed = b.conv(x, b.weights(4, 4, 3, 3), pads=(1, 1, 1, 1), epilogue=(fused("Add", 3),), operands=[x])
    b.output(conv(b.node("Concat", summed, x, axis=1), 3))
    whole = conv(b.value(2, 4, 6, 6), 4)                                               # joined with parts of itself
    part = b.node("Slice", whole, axes=(1,), starts=(1,), stops=(3,), steps=(1,))
    turned = b.node("Transpose", part, perm=(0, 1, 3, 2))
    b.output(conv(b.node("Concat", part, turned, whole, axis=1), 3))
    row = b.node("Neg", b.value(1, 6))
    b.output(b.node("Concat", b.node("Reshape", row, shape=(1, 6)), row, b.node("Transpose", row, perm=(0, 1)), axis=1))
    return b


def slices() -> Bundle:
    """Parts of values: views and copies, backwards, of each other, joined again."""
    b = Bundle(14)

    def cut(x: str, *ranges: tuple[int, int, int, int]) -> str:
        axes, starts, stops, steps = (tuple(column) for column in zip(*ranges, strict=True))
        return b.node("Slice", x, axes=axes, starts=starts, stops=stops, steps=steps)

    def conv(x: str, filters: int = 3) -> str:
        return b.conv(x, b.weights(filters, b.graph.shape(x)[1], 3, 3), pads=(1, 1, 1, 1))

    x = conv(b.value(2, 5, 8, 9), 8)
    first, second = cut(x, (1, 0, 4, 1)), cut(x, (1, 4, 8, 1))
    b.output(conv(first), conv(second), first, b.node("Mul", first, second))
    b.output(conv(cut(second, (1, 1, 3, 1))), cut(cut(second, (1, 1, 3, 1)), (1, 1, 2, 1)))
    b.output(conv(b.node("Concat", second, first, axis=1)), b.node("Concat", first, second, first, axis=1))
    split = conv(first, 4)                                                             # one half goes on
    b.output(conv(b.node("Concat", first, second, split, axis=1)))
    for ranges in (((1, 7, -1, -1),), ((1, 0, 8, 2),), ((1, 6, 1, -2),), ((3, 8, -1, -1),),
                   ((2, 1, 7, 3), (3, 0, 9, 2)), ((2, 7, -1, -2), (1, 2, 5, 1)), ((0, 1, 2, 1),),
                   ((0, 1, -1, -1), (1, 3, 4, 1)),
                   ((1, 0, 4, 1), (2, 0, 8, 1)), ((2, 3, 4, 1), (3, 3, 4, 1)), ((2, 3, 4, 1),)):
        b.output(cut(x, *ranges), conv(cut(b.input(2, 5, 8, 9), *[r for r in ranges if r[0] != 1] or [(2, 0, 8, 2)])))
    image = b.input(1, 3, 10, 12)                                                      # the focus stem
    quarters = [cut(image, (2, i, 10, 2), (3, j, 12, 2)) for j in (0, 1) for i in (0, 1)]
    b.output(conv(b.node("Concat", *quarters, axis=1), 4))
    for shape, ranges in (((7, 10), ((1, 2, 5, 1),)), ((7, 10), ((0, 6, -1, -1),)), ((50,), ((0, 3, 50, 4),)),
                          ((2, 3, 4), ((2, 3, -1, -1), (0, 1, 2, 1))), ((1, 1, 12), ((2, 4, 8, 1),)),
                          ((9, 1), ((0, 2, 5, 1),))):
        b.output(cut(b.value(*shape), *ranges), b.node("Neg", cut(b.input(*shape), *ranges)))
    return b


def movement() -> Bundle:
    """Reshape, Transpose and Pad between maps and flat values."""
    b = Bundle(15)

    def conv(x: str) -> str:
        return b.conv(x, b.weights(3, b.graph.shape(x)[1], 3, 3), pads=(1, 1, 1, 1))

    x = conv(b.value(2, 4, 6, 5))
    image = b.input(2, 3, 6, 5)
    flat = b.node("Reshape", x, shape=(2, 90))
    b.output(flat, b.node("Linear", flat, b.weights(4, 90)), conv(b.node("Reshape", flat, shape=(2, 9, 2, 5))))
    b.output(conv(b.node("Reshape", x, shape=(2, 6, 3, 5))), conv(b.node("Reshape", image, shape=(1, 6, 5, 6))))
    b.output(b.node("Reshape", x, shape=(180,)), b.node("Reshape", image, shape=(2, 3, 6, 5)),
             b.node("Reshape", b.value(1, 6, 1, 1), shape=(6,)), b.node("Reshape", b.value(6), shape=(1, 1, 2, 3)))
    again = b.value(4, 6)
    for shape in ((24,), (2, 12), (1, 4, 2, 3)):
        again = b.node("Reshape", again, shape=shape)
    b.output(conv(again), b.node("Exp", b.node("Reshape", b.value(3, 4), shape=(12,))))
    for perm in ((0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2), (0, 1, 2, 3)):
        b.output(b.node("Transpose", x, perm=perm), conv(b.node("Transpose", image, perm=perm)))
    for pair, width in ((2, 37), (2, 3), (3, 11)):                                         # phases next to each other
        phases = b.value(2, 3, pair, 2, 5, width)
        b.output(b.node("Transpose", phases, perm=(0, 1, 4, 3, 5, 2)), b.node("Neg", b.node(
            "Transpose", phases, perm=(0, 1, 3, 4, 5, 2))))
    b.output(b.node("Add", b.value(4, 50, 2), b.node("Transpose", b.value(4, 2, 50), perm=(0, 2, 1))))
    b.output(b.node("Transpose", b.value(7, 9), perm=(1, 0)), b.node("Transpose", b.value(2, 3, 4), perm=(2, 0, 1)),
             b.node("Transpose", b.value(5), perm=(0,)), b.node("Transpose", b.value(1, 5, 1, 1), perm=(0, 2, 3, 1)))
    groups = b.node("Reshape", conv(b.value(1, 2, 6, 5)), shape=(1, 3, 1, 6, 5))        # channel shuffle
    shuffled = b.node("Reshape", b.node("Transpose", groups, perm=(0, 2, 1, 3, 4)), shape=(1, 3, 6, 5))
    b.output(conv(shuffled))
    blocks = b.node("Reshape", x, shape=(2, 3, 3, 2, 5, 1))                             # depth to space and back
    b.output(b.node("Reshape", b.node("Transpose", blocks, perm=(0, 3, 5, 1, 2, 4)), shape=(2, 6, 3, 5)))
    for pads, value in (((0, 0, 1, 2, 0, 0, 3, 0), 0.0), ((0, 1, 0, 0, 0, 2, 0, 0), 1.5),
                        ((1, 0, 0, 3, 0, 0, 2, 0), -2.0), ((0,) * 8, 1.0)):
        b.output(b.node("Pad", x, pads=pads, value=value), conv(b.node("Pad", image, pads=pads, value=value)))
    b.output(b.node("Pad", b.value(3, 4), pads=(1, 0, 0, 2), value=0.5),
             b.node("Pad", b.value(5), pads=(2, 1), value=0.0),
             b.node("Pad", b.value(1, 3, 1, 1), pads=(0, 0, 1, 1, 0, 1, 0, 2), value=float("-inf")))
    return b


def windows() -> Bundle:
    """Pools, means, softmax, resizing."""
    b = Bundle(16)

    def conv(x: str) -> str:
        return b.conv(x, b.weights(2, b.graph.shape(x)[1], 3, 3), pads=(1, 1, 1, 1))

    x, image = conv(b.value(2, 3, 9, 21)), b.input(2, 3, 9, 21)
    none = (0, 0, 0, 0)
    for kernel, stride, pads in (((2, 2), (2, 2), none), ((3, 3), (2, 2), (1, 1, 1, 1)), ((3, 3), (2, 2), (0, 0, 1, 1)),
                                 ((5, 5), (1, 1), (2, 2, 2, 2)), ((2, 3), (1, 3), (0, 2, 1, 0)), ((1, 1), (2, 2), none),
                                 ((9, 21), (1, 1), none), ((3, 1), (3, 2), none)):
        window = {"kernel": kernel, "stride": stride, "pads": pads}
        b.output(b.node("MaxPool", x, **window, dilation=(1, 1)),
                 conv(b.node("MaxPool", image, **window, dilation=(1, 1))))
        for include in (False, True):
            b.output(b.node("AveragePool", image, **window, count_include_pad=include),
                     b.node("AveragePool", x, **window, count_include_pad=include))
    past = {"kernel": (2, 2), "stride": (2, 2), "pads": (1, 0, 1, 3)}                     # windows without any pixel
    b.output(b.node("MaxPool", x, **past, dilation=(1, 1)), b.node("AveragePool", x, **past, count_include_pad=False))
    b.output(b.node("MaxPool", x, kernel=(3, 3), stride=(1, 2), pads=(2, 2, 2, 2), dilation=(2, 2)),
             b.node("MaxPool", b.value(1, 2, 1, 1), kernel=(1, 1), stride=(1, 1), pads=none, dilation=(1, 1)),
             b.node("AveragePool", b.value(3, 1, 2, 2), kernel=(2, 2), stride=(2, 2), pads=none,
                    count_include_pad=False))
    for value in (x, image, b.value(2, 5, 1, 1)):
        b.output(b.node("GlobalAveragePool", value))
        for axes in ((2, 3), (1,), (0,), (3,), (1, 2, 3), (0, 2), (0, 1, 2, 3)):
            for op in ("ReduceMean", "ReduceMax"):
                b.output(b.node(op, value, axes=axes, keepdims=value != image))
        for axis in range(4):
            b.output(b.node("Softmax", value, axis=axis))
    for shape in ((2, 1000), (7,), (3, 4, 5), (2, 3, 600), (9, 70)):
        for axis in range(len(shape)):
            b.output(b.node("Softmax", b.value(*shape), axis=axis))
            for op in ("ReduceMean", "ReduceMax"):
                b.output(b.node(op, b.input(*shape), axes=(axis,), keepdims=False))
    return b


def resizing() -> Bundle:
    """Resize in every mode, up and down."""
    b = Bundle(17)
    x, image = b.value(2, 3, 7, 9), b.input(2, 3, 7, 9)
    for coordinates in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
        for size in ((14, 18), (5, 6), (7, 13), (1, 1), (10, 1)):
            attrs = {"coordinates": coordinates, "size": size, "scales": (size[0] / 7, size[1] / 9)}
            for rounding in ("floor", "round_prefer_floor", "round_prefer_ceil", "ceil"):
                source = x if size[0] == 5 else image
                b.output(b.node("Resize", source, mode="nearest", nearest_rounding=rounding, **attrs))
            b.output(b.node("Resize", image if size[0] == 5 else x, mode="linear", nearest_rounding="floor", **attrs))
    twice = {"coordinates": "asymmetric", "nearest_rounding": "floor", "scales": (2.0, 2.0)}
    up = b.node("Resize", x, mode="nearest", size=(14, 18), **twice)
    joined = b.node("Concat", up, b.value(2, 2, 14, 18), axis=1)
    b.output(b.conv(joined, b.weights(3, 5, 3, 3), pads=(1, 1, 1, 1)))
    pixel = b.node("Resize", b.value(1, 3, 1, 1), mode="linear", size=(2, 2), **twice)
    b.output(b.conv(pixel, b.weights(3, 3, 2, 1)))
    return b


def products() -> Bundle:
    """Products of two activations, and of a constant with one."""
    b = Bundle(18)
    for left, right in (((5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)), ((2, 3, 5, 7), (2, 3, 7, 4)), ((3, 5, 7), (7, 4)),
                        ((5, 7), (4, 7, 3)), ((2, 1, 3, 4), (5, 4, 6)), ((1, 1), (1, 1)), ((1, 9), (9, 40)),
                        ((13, 20), (20, 37)), ((2, 19, 33), (2, 33, 96)), ((2, 3, 17, 5), (3, 5, 24))):
        b.output(b.node("MatMul", b.value(*left), b.value(*right)), b.node("MatMul", b.input(*left), b.value(*right)))
    b.output(b.node("MatMul", b.constant(b.rng.normal(size=(4, 5))), b.value(5, 6)))
    x = b.conv(b.value(1, 3, 4, 5), b.weights(6, 3, 3, 3), pads=(1, 1, 1, 1))
    tokens = b.node("Transpose", b.node("Reshape", x, shape=(1, 6, 20)), perm=(0, 2, 1))
    keys = b.node("Transpose", tokens, perm=(0, 2, 1))
    b.output(b.node("MatMul", b.node("Softmax", b.node("MatMul", tokens, keys), axis=2), tokens))
    b.output(b.node("MatMul", b.value(9, 8), b.value(8, 11), epilogue=(fused("Relu"),)))
    return b


def outputs() -> Bundle:
    """Outputs that are read on, renamed inputs, views and parts of joined values."""
    b = Bundle(19)

    def conv(x: str, filters: int = 3) -> str:
        return b.conv(x, b.weights(filters, b.graph.shape(x)[1], 3, 3), pads=(1, 1, 1, 1), epilogue=(fused("Relu"),))

    image = b.input(1, 3, 6, 7)
    b.output(b.node("Reshape", image, shape=(1, 3, 6, 7)), b.node("Reshape", b.input(4, 5), shape=(20,)))
    first = conv(image)
    second = conv(first)
    joined = b.node("Concat", first, second, axis=1)
    part = b.node("Slice", joined, axes=(1,), starts=(1,), stops=(5,), steps=(1,))
    b.output(first, second, joined, conv(joined), part)
    flat = b.node("Linear", b.input(4, 5), b.weights(6, 5))
    renamed = b.node("Reshape", flat, shape=(24,))
    b.output(flat, renamed, b.node("Relu", renamed), b.node("Reshape", renamed, shape=(2, 12)))
    vector = b.node("Concat", b.value(1, 4), b.value(1, 3), axis=1)
    b.output(vector, b.node("Relu", vector))
    part = b.node("Neg", b.value(1, 4))
    b.output(b.node("Concat", part, b.value(1, 4), axis=1), part)
    return b
