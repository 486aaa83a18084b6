"""Convolutions and linear layers of every form, as bundles of cases (see harness.Bundle)."""

from __future__ import annotations

import numpy as np
from harness import Bundle, fused

ACTIVATIONS = (
    fused("Relu"), fused("Clip", min=0.0, max=6.0), fused("Clip", min=-0.5, max=float("inf")), fused("Sigmoid"),
    fused("Tanh"), fused("Silu"), fused("HardSwish"), fused("HardSigmoid", alpha=0.2, beta=0.5),
    fused("LeakyRelu", alpha=0.1), fused("Elu", alpha=0.7), fused("Gelu", approximate="none"),
    fused("Gelu", approximate="tanh"), fused("Exp"), fused("Neg"), fused("Abs"), fused("Erf"), fused("Softplus"),
    fused("Mish"), fused("Sin"), fused("Cos"), fused("Affine", scale=-1.5, shift=0.25),
)

Pair = tuple[int, int]


def same(kernel: Pair) -> tuple[int, int, int, int]:
    """Pads that keep the size at stride 1."""
    top, left = (kernel[0] - 1) // 2, (kernel[1] - 1) // 2
    return top, left, kernel[0] - 1 - top, kernel[1] - 1 - left


def conv_kernels() -> Bundle:
    """Kernel sizes, strides, dilations, pads and groups."""
    b = Bundle(1)

    def add(kernel: Pair, channels: int = 5, filters: int = 6, size: Pair = (13, 11), batch: int = 1, groups: int = 1,
            pads: tuple[int, int, int, int] | None = None, **attrs: Pair) -> None:
        w = b.weights(filters, channels // groups, *kernel)
        b.output(b.conv(b.value(batch, channels, *size), w, pads=same(kernel) if pads is None else pads,
                        groups=groups, **attrs))

    for kernel in ((1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 2), (4, 4)):
        add(kernel)
        add(kernel, stride=(2, 2))
    for kernel in ((1, 1), (3, 3), (2, 5)):
        add(kernel, stride=(3, 3), size=(14, 17))
        add(kernel, stride=(2, 1))
        add(kernel, stride=(1, 3), pads=(0, 0, 0, 0))
    for dilation in ((2, 2), (3, 1)):
        add((3, 3), dilation=dilation, pads=(2, 1, 3, 2))
        add((3, 3), dilation=dilation, stride=(2, 2), pads=(2, 2, 2, 2))
    for dilation in ((24, 12), (12, 30)):  # taps that see padding alone
        for stride in (1, 2):
            add((3, 3), dilation=dilation, stride=(stride,) * 2, pads=(*dilation, *dilation))
    add((3, 3), channels=6, groups=2, batch=3)
    add((1, 1), channels=6, groups=3, filters=9, batch=2)
    add((3, 3), channels=6, groups=3, filters=12, stride=(2, 2))
    for pads in ((0, 1, 2, 0), (1, 0, 0, 2), (0, 0, 1, 1), (4, 5, 3, 6), (0, 7, 0, 0), (0, 0, 0, 5), (6, 0, 0, 0)):
        add((3, 3), pads=pads)
    add((3, 3), pads=(3, 4, 5, 3), stride=(2, 2))
    add((1, 1), pads=(2, 1, 0, 3))
    add((1, 1), pads=(1, 1, 1, 1), stride=(2, 2))
    return b


def conv_maps() -> Bundle:
    """Odd map sizes, channel counts and batches; inputs straight from the caller; results of one pixel."""
    b = Bundle(2)

    def add(shape: tuple[int, ...], kernel: Pair, filters: int = 5, direct: bool = False,
            pads: tuple[int, int, int, int] | None = None, stride: Pair = (1, 1), groups: int = 1) -> None:
        x = b.input(*shape) if direct else b.value(*shape)
        w = b.weights(filters, shape[1] // groups, *kernel)
        b.output(b.conv(x, w, pads=same(kernel) if pads is None else pads, stride=stride, groups=groups,
                        bias=not direct))

    for size in ((1, 1), (1, 9), (9, 1), (2, 1), (1, 2), (2, 2), (7, 7), (1, 37), (41, 1)):
        add((1, 4, *size), (3, 3))
        add((2, 3, *size), (1, 1))
    add((1, 4, 1, 40), (1, 3))
    add((1, 4, 1, 40), (1, 5), pads=(0, 0, 0, 0), stride=(1, 2))
    add((3, 3, 17, 19), (3, 3), filters=7, direct=True)
    add((1, 3, 23, 29), (7, 7), stride=(2, 2), direct=True)
    add((1, 3, 12, 12), (6, 6), stride=(2, 2), pads=(2, 2, 2, 2), direct=True)
    add((3, 3, 5, 5), (5, 5), pads=(0, 0, 0, 0))                                       # the map becomes one pixel
    add((3, 6, 5, 5), (5, 5), filters=8, pads=(0, 0, 0, 0), groups=2, direct=True)
    add((2, 4, 3, 3), (7, 7), filters=3, pads=(2, 2, 2, 2))                            # one pixel, taps outside
    add((2, 4, 3, 3), (7, 7), filters=3)                                               # a kernel wider than the map
    add((2, 4, 1, 1), (1, 1), filters=7)
    add((1, 4, 1, 1), (1, 1), pads=(1, 1, 1, 1))                                       # one pixel becomes a map
    add((1, 4, 1, 1), (1, 1), pads=(0, 1, 0, 0), direct=True)
    add((2, 3, 1, 1), (3, 3), filters=17, direct=True)
    add((1, 2, 6, 6), (3, 3), pads=(0, 0, 0, 0), stride=(4, 4))                        # one pixel by stride
    add((1, 64, 48, 50), (1, 1), filters=3)                                            # more than one chunk
    add((1, 1, 67, 71), (3, 3), filters=1)
    add((1, 31, 7, 7), (1, 1), filters=37)
    return b


def depthwise() -> Bundle:
    """One filter per channel, and several per channel."""
    b = Bundle(3)

    def add(kernel: Pair, size: Pair = (13, 11), channels: int = 7, multiplier: int = 1, batch: int = 1,
            stride: Pair = (1, 1), dilation: Pair = (1, 1), pads: tuple[int, int, int, int] | None = None,
            bias: bool = True, direct: bool = False) -> None:
        shape = (batch, channels, *size)
        w = b.weights(channels * multiplier, 1, *kernel)
        b.output(b.conv(b.input(*shape) if direct else b.value(*shape), w, stride=stride, dilation=dilation, bias=bias,
                        pads=same(kernel) if pads is None else pads, groups=channels))

    for kernel in ((3, 3), (5, 5), (7, 7), (1, 3), (1, 1), (2, 2)):
        add(kernel)
        add(kernel, stride=(2, 2), batch=2)
        add(kernel, size=(6, 45), batch=2)  # rows so long that planes are not copied to get margins
        add(kernel, size=(6, 45), stride=(2, 2))
    add((3, 3), multiplier=2)
    add((3, 3), multiplier=3, stride=(2, 2), batch=2)
    add((3, 3), dilation=(2, 2), pads=(2, 2, 2, 2))
    add((3, 3), dilation=(20, 30), pads=(20, 30, 20, 30))
    add((3, 3), dilation=(20, 30), pads=(20, 30, 20, 30), stride=(2, 2))
    add((3, 3), dilation=(2, 3), pads=(1, 2, 0, 3), stride=(2, 2), bias=False)
    add((3, 3), pads=(0, 0, 1, 1), stride=(2, 2), size=(12, 12), direct=True)
    add((3, 3), pads=(0, 0, 0, 0), channels=1)
    add((3, 3), pads=(4, 3, 5, 6))
    add((3, 3), stride=(3, 3), size=(10, 31), batch=3)
    for size in ((1, 1), (1, 9), (9, 1), (2, 2), (7, 7), (37, 41)):
        add((3, 3), size=size)
    for kernel, size in (((3, 3), (37, 41)), ((5, 5), (12, 31)), ((3, 3), (6, 18)), ((3, 3), (5, 16))):
        add(kernel, size=size, stride=(2, 2), channels=3)                              # rows of vectors and a part
    add((3, 3), size=(3, 3), pads=(0, 0, 0, 0), batch=2)                               # one pixel
    add((7, 7), size=(7, 7), pads=(0, 0, 0, 0), direct=True)
    add((3, 3), multiplier=2, size=(3, 3), pads=(0, 0, 0, 0))
    return b


def conv_epilogues() -> Bundle:
    """Activations and fused operands of convolutions, depthwise convolutions and single pixels."""
    b = Bundle(4)

    def add(epilogue: tuple, shape: tuple[int, ...] = (1, 4, 6, 7), filters: int = 5, direct: bool = False,
            margin: bool = True, groups: int = 1) -> None:
        w = b.weights(filters, shape[1] // groups, 3, 3)
        size = (shape[0], filters, *shape[2:])
        count = sum(f.operand is not None for f in epilogue)
        y = b.conv(b.value(*shape), w, pads=(1, 1, 1, 1), groups=groups, epilogue=epilogue,
                   operands=[b.input(*size) if direct else b.value(*size) for _ in range(count)])
        # half of the results are read by a convolution that wants zeros around them
        b.output(b.conv(y, b.weights(2, filters, 3, 3), pads=(1, 1, 1, 1)) if margin else y)

    for i, activation in enumerate(ACTIVATIONS):
        add((activation,), filters=1, margin=i % 2 == 0)
    for i, op in enumerate(("Add", "Sub", "Mul")):
        add((fused(op, 3),), batch_shape(i))
        add((fused(op, 3), fused("Relu")), direct=True)
        add((fused("Silu"), fused(op, 3)), margin=False)
        add((fused("Relu"), fused(op, 3), fused("HardSwish")), batch_shape(i + 1), groups=1)
    add((fused("Add", 3), fused("Relu"), fused("Mul", 4)))
    add((fused("Relu"), fused("Add", 3)), (2, 5, 7, 7), groups=5)
    add((fused("Sub", 3), fused("Sigmoid")), (2, 5, 7, 7), groups=5, margin=False)
    add((fused("Clip", min=0.0, max=6.0), fused("Mul", 3)), (1, 5, 9, 40), groups=5, direct=True)
    x = b.value(3, 4, 5, 5)                                                            # one pixel
    for epilogue in ((fused("Silu"),), (fused("Add", 3), fused("Relu")), (fused("Gelu", approximate="none"),)):
        operands = [b.value(3, 6, 1, 1)] if any(f.operand for f in epilogue) else []
        b.output(b.conv(x, b.weights(6, 4, 5, 5), epilogue=epilogue, operands=operands))
    y = b.value(1, 6, 8, 9)                                                            # input and operand are one value
    b.output(b.conv(y, b.weights(6, 6, 3, 3), pads=(1, 1, 1, 1), epilogue=(fused("Add", 3),), operands=[y]))
    z = b.input(1, 6, 8, 9)
    b.output(b.conv(z, b.weights(6, 6, 5, 5), pads=(2, 2, 2, 2), epilogue=(fused("Mul", 3),), operands=[z]))
    b.output(b.conv(y, b.weights(6, 6, 1, 1), bias=False, epilogue=(fused("Add", 2), fused("Relu")), operands=[z]))
    return b


def batch_shape(i: int) -> tuple[int, int, int, int]:
    return ((1, 4, 6, 7), (3, 4, 5, 5), (2, 4, 1, 9), (1, 4, 17, 3))[i % 4]


def masks(rng: np.random.Generator, filters: int, channels: int, kernel: Pair) -> list[np.ndarray]:
    """Zeros of every kind for a weight of this shape."""
    shape = (filters, channels, *kernel)
    single = np.zeros(shape, bool)
    single[filters // 2, channels // 3, kernel[0] // 2, kernel[1] // 2] = True
    gaps = np.ones(shape, bool)
    gaps[4:min(12, filters - 1)] = False
    blocks = np.repeat(np.repeat(rng.random((-(-filters // 8), -(-channels // 4), *kernel)) < 0.3, 8, 0), 4, 1)
    rows = np.zeros(shape, bool)
    rows[rng.random(filters) < 0.3] = True
    kept = rng.integers(0, 8, (filters, channels))                     # eight sets of four positions
    positions = np.array([rng.permutation(9) < 4 for _ in range(8)]).reshape(8, 3, 3)
    pattern = [positions[kept] & (rng.random((filters, channels, 1, 1)) < 0.6)] if kernel == (3, 3) else []
    return [np.zeros(shape, bool), single, gaps, rng.random(shape) < 0.1, rng.random(shape) < 0.6,
            blocks[:filters, :channels], rows, np.ones(shape, bool) & (np.arange(channels) % 3 == 0)[:, None, None],
            *pattern]


def zeros() -> Bundle:
    """Weights with zeros of every kind: convolutions, single pixels and linear layers."""
    b = Bundle(5)
    layers = ((24, 12, (3, 3), (9, 8)), (37, 19, (1, 1), (6, 6)), (13, 5, (3, 3), (5, 5)))
    for filters, channels, kernel, size in layers:
        for i, keep in enumerate(masks(b.rng, filters, channels, kernel)):
            x = b.value(2 if i == 3 else 1, channels, *size)
            b.output(b.conv(x, b.weights(filters, channels, *kernel, keep=keep), pads=same(kernel),
                            stride=(2, 2) if i == 5 else (1, 1), bias=i != 1))
    for filters, channels in ((48, 40), (11, 70), (1, 9)):
        for i, keep in enumerate(masks(b.rng, filters, channels, (1, 1))):
            bias = [b.constant(b.rng.normal(size=filters))] if i % 2 else []
            b.output(b.node("Linear", b.value(1 + i % 3, channels), b.weights(filters, channels, keep=keep[..., 0, 0]),
                            *bias))
    for keep in masks(b.rng, 10, 6, (3, 3))[:5]:
        b.output(b.conv(b.value(1, 6, 3, 3), b.weights(10, 6, 3, 3, keep=keep)))
        b.output(b.conv(b.value(1, 10, 6, 6), b.weights(10, 1, 3, 3, keep=keep[:, :1]), groups=10))
    return b


def linear() -> Bundle:
    """Linear layers: rows, sizes, ranks, epilogues."""
    b = Bundle(6)
    for shape, filters in (((1, 100), 10), ((1, 1), 1), ((7, 5), 3), ((3, 64), 64), ((2, 3, 5), 33), ((9,), 17),
                           ((1, 1000), 2), ((2, 4, 1, 1), 5), ((1, 2, 3, 8), 5), ((2, 3, 4, 4), 4), ((1, 3, 5, 6), 1)):
        bias = b.constant(b.rng.normal(size=filters))
        b.output(b.node("Linear", b.value(*shape), b.weights(filters, shape[-1]), bias))
        b.output(b.node("Linear", b.input(*shape), b.weights(filters, shape[-1])))
    for activation in ACTIVATIONS:
        b.output(b.node("Linear", b.value(2, 9), b.weights(4, 9), epilogue=(activation,)))
    for shape in ((4, 6), (1, 3, 5, 6)):
        size = (*shape[:-1], 7)
        b.output(b.node("Linear", b.value(*shape), b.weights(7, 6), epilogue=(fused("Add", 2), fused("Relu")),
                        operands=[b.value(*size)]))
        b.output(b.node("Linear", b.value(*shape), b.weights(7, 6), b.constant(b.rng.normal(size=7)),
                        epilogue=(fused("Silu"), fused("Mul", 3)), operands=[b.input(*size)]))
    # more rows than a second-level cache holds: they go through all row blocks in chunks
    b.output(b.node("Linear", b.value(1501, 200), b.constant(b.rng.normal(size=(70, 200)))))
    for rows in (1, 2, 9, 20):  # several streams of weights, tiles of rows of two sizes; lists alike and unlike
        for filters in (1, 24, 97, 131):
            kept = b.rng.random((filters, 50)) < 0.3
            for keep in (None, kept, np.repeat(kept[:, :10], 5, axis=1)):
                w = b.weights(filters, 50, keep=keep)
                b.output(b.node("Linear", b.value(rows, 50), w, b.constant(b.rng.normal(size=filters)),
                                epilogue=(fused("Add", 3), fused("Relu")), operands=[b.value(rows, filters)]))
    pooled = b.node("GlobalAveragePool", b.value(2, 11, 5, 5))
    flat = b.node("Reshape", pooled, shape=(2, 11))
    b.output(b.node("Linear", flat, b.weights(6, 11)))
    last = b.weights(3, 65541, keep=np.arange(65541) % 97 == 66)  # places beyond 16 bits
    b.output(b.node("Linear", b.value(1, 65541), last))
    return b


def layers() -> Bundle:
    """Layers that together allow every form, height and tile: wide and narrow maps, zeros, margins, operands."""
    b = Bundle(61)

    def add(filters: int, channels: int, kernel: int, size: tuple[int, int], *, batch: int = 1, keep: int | None = None,
            stride: int = 1, reader: bool = False, operand: bool = False) -> None:
        shape = (kernel, kernel)
        mask = None if keep is None else masks(b.rng, filters, channels, shape)[keep]
        w = b.weights(filters, channels, *shape, keep=mask)
        plain = b.conv(b.value(batch, channels, *size), w, pads=same(shape), stride=(stride, stride))
        epilogue = [fused("Add", 3), fused("Relu")] if operand else [fused("Silu")]
        y = b.conv(b.value(batch, channels, *size), w, pads=same(shape), stride=(stride, stride), epilogue=epilogue,
                   operands=[b.value(*b.graph.shape(plain))] if operand else [])
        b.output(y, *([b.conv(y, b.weights(1, filters, 3, 3), pads=(1, 1, 1, 1))] if reader else []))

    add(32, 6, 3, (7, 7), keep=5, reader=True, operand=True)
    add(64, 9, 1, (5, 3), batch=2)
    add(48, 7, 3, (14, 13), keep=4, stride=2, reader=True)
    add(35, 8, 1, (9, 40), keep=3, operand=True)
    add(16, 5, 3, (30, 33), keep=6, batch=2)
    add(33, 4, 3, (2, 2), keep=2, reader=True)
    add(26, 9, 3, (9, 21), keep=8, batch=2, reader=True, operand=True)
    return b


def patterns() -> Bundle:
    """Kernels with few distinct sets of taps, and what borders on them: rare sets, whole kernels, large kernels."""
    b = Bundle(62)

    def add(filters: int, channels: int, kernel: Pair, size: Pair, sets: int, *, dead: float = 0.4, batch: int = 1,
            operand: bool = False, reader: bool = False, groups: int = 1, **attrs: Pair) -> None:
        inner = channels // groups
        library = b.rng.random((sets, *kernel)) < 0.45
        library[0] = True
        keep = library[b.rng.integers(0, sets, (filters, inner))] & (b.rng.random((filters, inner, 1, 1)) > dead)
        dilation = attrs.get("dilation", (1, 1))
        pads = same(((kernel[0] - 1) * dilation[0] + 1, (kernel[1] - 1) * dilation[1] + 1))
        w = b.weights(filters, inner, *kernel, keep=keep)
        x = b.value(batch, channels, *size)
        shape = b.graph.shape(b.conv(x, w, pads=pads, groups=groups, **attrs))
        y = b.conv(x, w, pads=pads, groups=groups, bias=not operand, operands=[b.value(*shape)] if operand else [],
                   epilogue=[fused("Add", 2), fused("Relu")] if operand else [fused("HardSwish")], **attrs)
        b.output(y, *([b.conv(y, b.weights(1, filters, 3, 3), pads=(1, 1, 1, 1))] if reader else []))

    add(30, 7, (3, 3), (14, 14), 5, reader=True, operand=True)
    add(9, 6, (3, 3), (7, 7), 3, batch=3, reader=True)
    add(170, 3, (3, 3), (5, 23), 4, operand=True)                      # more than one block of filters
    add(12, 8, (3, 3), (8, 9), 2, groups=2, reader=True)
    add(13, 5, (3, 3), (11, 10), 4, dilation=(2, 3), batch=2)
    add(13, 5, (3, 3), (11, 10), 4, stride=(2, 2), reader=True)
    add(11, 4, (5, 5), (6, 7), 3)                                      # sets that are cut
    add(10, 4, (1, 3), (1, 40), 2, operand=True)
    add(16, 3, (3, 3), (9, 9), 400)                                    # hardly two sets alike
    add(16, 3, (3, 3), (9, 9), 2, dead=0.0)
    add(6, 4, (3, 3), (20, 20), 3, dead=1.0, reader=True)              # nothing kept
    add(5, 2, (7, 7), (6, 5), 2, dead=0.1)
    return b
