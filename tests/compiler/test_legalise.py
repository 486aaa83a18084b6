"""What becomes of convolutions before kernels see them."""

from __future__ import annotations

import pytest
from harness import Bundle

from blockpunch.compiler.legalise import legalise, seen


@pytest.mark.parametrize(("size", "dilation", "pads", "stride", "rows", "columns"), [
    ((16, 16), (24, 24), (24, 24, 24, 24), 1, (1, 2), (1, 2)),
    ((16, 16), (12, 24), (12, 24, 12, 24), 1, (0, 3), (1, 2)),
    ((1, 9), (1, 1), (1, 1, 1, 1), 1, (1, 2), (0, 3)),
    ((2, 2), (1, 1), (1, 1, 1, 1), 2, (1, 3), (1, 3)),
    ((5, 5), (1, 1), (0, 0, 0, 0), 1, (0, 3), (0, 3)),
    ((4, 4), (1, 1), (7, 0, 0, 0), 8, (0, 3), (0, 3)),
])
def test_kernel_rows_that_see_padding_alone_go(
        size: tuple[int, int], dilation: tuple[int, int], pads: tuple[int, int, int, int], stride: int,
        rows: tuple[int, int], columns: tuple[int, int]) -> None:
    b = Bundle(5)
    y = b.conv(b.value(1, 4, *size), b.weights(6, 4, 3, 3), dilation=dilation, pads=pads, stride=(stride, stride))
    b.output(y)
    node = b.graph.producer()[y]
    assert seen(node, b.graph) == (slice(*rows), slice(*columns))
    conv = next(n for n in legalise(b.graph) if n.op == "Conv")
    assert len(conv.attrs["taps"]) == (rows[1] - rows[0]) * (columns[1] - columns[0])
