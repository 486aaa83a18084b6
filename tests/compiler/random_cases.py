"""Random cases: convolutions of any form (a hypothesis strategy), and networks that mix all kinds of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from harness import Bundle, fused
from hypothesis import strategies as st

Spec = dict[str, Any]


@st.composite
def convolutions(draw: st.DrawFn) -> Spec:
    """Everything that a convolution depends on; shapes that fit."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.integers(0, 4)] * 4))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, r - pads[i] - pads[i + 2]) for i, r in enumerate(reach)]
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    depthwise = draw(st.integers(0, 3)) == 0
    inner = 1 if depthwise else draw(st.integers(1, 9))
    return {
        "kernel": kernel, "dilation": dilation, "pads": pads, "stride": draw(st.tuples(*[st.integers(1, 3)] * 2)),
        "size": tuple(low + draw(st.integers(0, 24)) for low in least), "batch": draw(st.sampled_from((1, 1, 2, 3))),
        "groups": draw(st.integers(1, 9)) if depthwise else groups, "inner": inner,
        "filters": 1 if depthwise else draw(st.integers(1, 20)), "direct": draw(st.booleans()),
        "density": draw(st.sampled_from((1.0, 1.0, 0.5, 0.1, 0.0))), "rows": draw(st.sampled_from((1, 1, 4, 8))),
        "epilogue": draw(st.sampled_from(("", "Relu", "Add", "Relu Add", "Mul Silu"))), "reader": draw(st.booleans()),
    }


def bundle_of(specs: list[Spec]) -> Bundle:
    """A bundle with one case per spec."""
    b = Bundle(31)
    for spec in specs:
        channels, filters = spec["inner"] * spec["groups"], spec["filters"] * spec["groups"]
        shape = (spec["batch"], channels, *spec["size"])
        keep = b.rng.random((-(-filters // spec["rows"]), spec["inner"], *spec["kernel"])) < spec["density"]
        w = b.weights(filters, spec["inner"], *spec["kernel"], keep=np.repeat(keep, spec["rows"], 0)[:filters])
        attrs = {name: spec[name] for name in ("stride", "pads", "dilation", "groups")}
        plain = b.conv(b.value(*shape), w, **attrs)
        size = b.graph.shape(plain)
        words = spec["epilogue"].split()
        epilogue = [fused(word, 3 if word in ("Add", "Mul") else None) for word in words]
        operands = [b.input(*size) if spec["direct"] else b.value(*size)] if {"Add", "Mul"} & set(words) else []
        y = b.conv(b.input(*shape) if spec["direct"] else b.value(*shape), w, **attrs, epilogue=epilogue,
                   operands=operands)
        if spec["reader"]:
            y = b.conv(y, b.weights(2, filters, 3, 3), pads=(1, 1, 1, 1))
        b.output(plain, y)
    return b


def network(seed: int, layers: int = 28) -> Bundle:
    """A network in which any layer may read any earlier value: views, joins and lives of values of every kind."""
    b = Bundle(seed)
    rng = b.rng
    values = [b.input(2, 4, 12, 10), b.input(2, 3, 6, 5)]

    def pick(like: tuple[int, ...] | None = None) -> str:
        known = [v for v in values if like is None or b.graph.shape(v) == like]
        return known[min(len(known) - 1, int(rng.integers(0, 6)))] if rng.random() < 0.3 else known[-int(
            rng.integers(1, min(len(known), 5) + 1))]

    def conv(x: str) -> str:
        kernel, stride = (int(rng.integers(1, 4)), int(rng.integers(1, 6))), int(rng.choice((1, 1, 1, 2)))
        pads = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2, kernel[0] // 2, kernel[1] // 2)
        channels, filters = b.graph.shape(x)[1], int(rng.integers(1, 10))
        depthwise = rng.random() < 0.25
        w = b.weights(channels, 1, *kernel) if depthwise else b.weights(
            filters, channels, *kernel, keep=rng.random((filters, channels, *kernel)) < rng.choice((1, 0.4)))
        plain = b.conv(x, w, pads=pads, stride=(stride, stride), groups=channels if depthwise else 1)
        same = [v for v in values if b.graph.shape(v) == b.graph.shape(plain)]
        if not same or rng.random() < 0.5:
            return plain
        return b.conv(x, w, pads=pads, stride=(stride, stride), groups=channels if depthwise else 1,
                      epilogue=(fused("Add", 3), fused("Relu")), operands=[same[-1]])

    def concat(x: str) -> str:
        shape = b.graph.shape(x)
        fits = [v for v in values if b.graph.shape(v)[2:] == shape[2:] and b.graph.shape(v)[0] == shape[0]]
        return b.node("Concat", *[fits[int(i)] for i in rng.integers(0, len(fits), rng.integers(2, 5))], axis=1)

    def cut(x: str) -> str:
        channels = b.graph.shape(x)[1]
        start = int(rng.integers(0, channels))
        stop = int(rng.integers(start, channels)) + 1
        return b.node("Slice", x, axes=(1,), starts=(start,), stops=(stop,), steps=(1,))

    def arithmetic(x: str) -> str:
        return b.node(str(rng.choice(("Add", "Mul", "Sub"))), x, pick(b.graph.shape(x)), epilogue=(fused("Tanh"),))

    def shuffle(x: str) -> str:
        n, c, h, w = b.graph.shape(x)
        five = b.node("Transpose", b.node("Reshape", x, shape=(n, 1, c, h, w)), perm=(0, 2, 1, 4, 3))
        return b.node("Transpose", b.node("Reshape", five, shape=(n, c, w, h)), perm=(0, 1, 3, 2))

    def pool(x: str) -> str:
        if min(b.graph.shape(x)[2:]) < 2:
            return b.node("Silu", x)
        if rng.random() < 0.5:
            return b.node("MaxPool", x, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1), dilation=(1, 1))
        return b.node("AveragePool", x, kernel=(2, 2), stride=(2, 2), pads=(0, 0, 0, 0), count_include_pad=False)

    def resize(x: str) -> str:
        h, w = b.graph.shape(x)[2:]
        if h > 6:
            return b.node("Mul", x, b.node("Sigmoid", b.node("GlobalAveragePool", x)))
        return b.node("Resize", x, mode="nearest", coordinates="asymmetric", nearest_rounding="floor",
                      scales=(2.0, 2.0), size=(2 * h, 2 * w))

    kinds = (conv, conv, conv, concat, concat, cut, arithmetic, shuffle, pool, resize)
    while len(values) < layers:
        values.append(kinds[int(rng.integers(0, len(kinds)))](pick()))
    read = {name for node in b.graph.nodes for name in node.inputs}
    made = [v for v in values if v not in b.graph.inputs]
    b.output(*[v for v in made if v not in read], *made[::7])
    return b
