"""A batch runs image by image where that is possible; the rest takes it at once, and nobody sees the difference."""

from __future__ import annotations

from harness import Bundle, check, fused

from blockpunch.compiler.batch import parts_of

BATCH = 3


def shares(b: Bundle) -> list[tuple[int, int]]:
    """(repeats, nodes) of each part, after comparing the compiled network with the oracle."""
    parts = [(part.repeat, len(part.graph.nodes)) for part in parts_of(b.graph)]
    check(b, "host", ranges=(1, 2))
    return parts


def test_convolutions_run_for_each_image_and_linear_layers_for_all() -> None:
    b = Bundle()
    x = b.conv(b.input(BATCH, 5, 9, 8), b.weights(12, 5, 3, 3), pads=(1, 1, 1, 1), epilogue=[fused("Relu")])
    pooled = b.node("GlobalAveragePool", x)
    flat = b.node("Reshape", pooled, shape=(BATCH, 12))
    b.output(b.node("Softmax", b.node("Linear", flat, b.weights(7, 12)), axis=1))
    assert shares(b) == [(BATCH, 3), (1, 2)]


def test_a_value_may_be_an_output_and_be_handed_on() -> None:
    b = Bundle()
    x = b.conv(b.input(BATCH, 5, 9, 8), b.weights(6, 5, 1, 1))
    flat = b.node("Reshape", x, shape=(BATCH, 6 * 72))
    b.output(flat, b.node("Linear", flat, b.weights(7, 6 * 72)), x)
    assert shares(b) == [(BATCH, 2), (1, 1)]


def test_two_inputs_and_several_outputs() -> None:
    b = Bundle()
    x, z = b.input(BATCH, 4, 6, 5), b.input(BATCH, 4, 12, 10)
    y = b.conv(z, b.weights(4, 4, 3, 3), stride=(2, 2), pads=(1, 1, 1, 1))
    b.output(b.node("Add", x, y), b.node("Concat", x, y, axis=1), b.node("Transpose", y, perm=(0, 2, 3, 1)))
    assert shares(b) == [(BATCH, 4)]


def test_what_mixes_images_takes_them_all() -> None:
    b = Bundle()
    x = b.conv(b.input(BATCH, 4, 6, 5), b.weights(4, 4, 1, 1))
    b.output(b.node("ReduceMean", x, axes=(0,), keepdims=True), b.node("Transpose", x, perm=(1, 0, 2, 3)),
             b.node("Softmax", b.node("Reshape", x, shape=(BATCH, 120)), axis=0),
             b.node("Mul", x, b.constant(b.rng.normal(size=(BATCH, 1, 1, 1)))),
             b.node("Reshape", x, shape=(4, 30 * BATCH)), b.node("Concat", x, x, axis=0))
    assert shares(b) == [(BATCH, 2), (1, 6)]


def test_no_batch_is_one_part() -> None:
    b = Bundle()
    b.output(b.conv(b.input(1, 4, 6, 5), b.weights(4, 4, 1, 1)))
    assert shares(b) == [(1, 1)]
