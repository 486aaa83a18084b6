"""Blocked compressed storage: nothing is lost, nothing is counted wrong, and the structure in the zeros is found."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from harness import Bundle, check, fused
from hypothesis import given, settings
from hypothesis import strategies as st

from blockpunch.compiler import StepInfo, compile_graph
from blockpunch.compiler.lists import lists_of, runs_of, tap_sets
from blockpunch.compiler.packing import heights, pack, pack_own, row_orders, stored_columns, unpack, unpack_own
from blockpunch.target import Target


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Weights with zeros of any kind: single ones, whole rows and columns, blocks of rows."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    height = draw(st.sampled_from((1, 1, 2, 4, 8)))
    density = draw(st.sampled_from((0.0, 0.03, 0.3, 0.8, 1.0)))
    keep = np.repeat(rng.random((-(-rows // height), columns)) < density, height, 0)[:rows]
    keep[rng.random(rows) < draw(st.sampled_from((0.0, 0.3)))] = False
    keep[:, rng.random(columns) < draw(st.sampled_from((0.0, 0.3)))] = False
    weights = np.where(keep, rng.normal(size=(rows, columns)), 0).astype(np.float32)
    return weights[rng.permutation(rows)] if draw(st.booleans()) else weights


@settings(max_examples=150, deadline=None)
@given(matrices(), st.sampled_from((1, 2, 3, 4, 6, 8, 12, 16, 32)), st.integers(0, 2 ** 32 - 1))
def test_pack_keeps_every_weight(weights: np.ndarray, height: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(weights))
    segments = pack(weights, order, height)
    np.testing.assert_array_equal(unpack(segments, weights.shape[1]), weights)
    start = 0
    for s in segments:  # blocks may change places, rows stay in their block
        rows = order[start:start + len(s.filters)].reshape(-1, s.height)
        start += len(s.filters)
        assert sorted(map(tuple, s.filters.reshape(-1, s.height))) == sorted(map(tuple, rows))
    for s in segments:
        assert s.starts[0] == 0 and s.starts[-1] == len(s.columns) == len(s.panel)
        assert s.panel.shape[1] == s.height
        assert (s.panel != 0).any(axis=1).all(), "a stored column without a weight"
        for first, last in zip(s.starts[:-1], s.starts[1:], strict=True):
            assert (np.diff(s.columns[first:last]) > 0).all(), "columns of a block ascend"


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from((1, 2, 4, 8)), st.integers(1, 40), st.integers(1, 5))
def test_lists_of_their_own_keep_every_weight(weights: np.ndarray, height: int, columns: int, parts: int) -> None:
    segments = pack_own(weights, height, columns, parts)
    np.testing.assert_array_equal(unpack_own(segments, weights.shape[1]), weights)
    assert sorted(np.concatenate([s.filters[0] for s in segments])) == list(range(len(weights)))
    for s in segments:
        assert s.starts[-1] == len(s.columns) == len(s.panel) and s.columns.shape == s.panel.shape
        assert len(s.parts) == min(parts, s.blocks) + 1 and np.diff(s.parts).max() <= np.diff(s.parts).min() + 1
        steps = np.diff(s.starts).reshape(-1, s.blocks)
        for index, filters in enumerate(s.filters):
            first, behind = index * columns, min((index + 1) * columns, weights.shape[1])
            longest = np.count_nonzero(weights[filters, first:behind], axis=1).reshape(-1, s.height).max(axis=1)
            np.testing.assert_array_equal(steps[index], longest)
            stored = s.columns[s.starts[index * s.blocks]:s.starts[(index + 1) * s.blocks]]
            assert stored.size == 0 or first <= stored.min() <= stored.max() < behind
            for start, end in pairwise(s.parts * s.height):  # a part keeps its filters: they are one thread's
                assert sorted(filters[start:end]) == sorted(s.filters[0][start:end])


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from((1, 2, 3, 4, 6, 8, 12, 16, 32)))
def test_stored_columns_is_what_pack_stores(weights: np.ndarray, height: int) -> None:
    for order in row_orders(weights, [height]):
        counted = [(p, sorted(counts)) for p, counts in stored_columns(weights[order.rows] != 0, height)]
        assert counted == [(s.height, sorted(np.diff(s.starts))) for s in pack(weights, order.rows, height)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=70), st.integers(2, 8))
def test_any_range_of_blocks_has_its_share_of_the_work(columns: list[int], threads: int) -> None:
    weights = np.array([[1.0] * n + [0.0] * (60 - n) for n in columns], np.float32)
    work = np.diff(pack(weights, np.arange(len(weights)), 1)[0].starts)
    ends = [len(work) * i // threads for i in range(threads + 1)]
    shares = [work[a:b].sum() for a, b in pairwise(ends)]
    assert max(shares) <= work.sum() / threads + 2.5 * work.max()


@given(st.integers(1, 5000), st.integers(1, 64))
def test_heights_cover_all_filters(filters: int, height: int) -> None:
    parts = heights(filters, height)
    assert sum(rows for _, rows in parts) == filters
    assert all(rows > 0 and rows % p == 0 and p <= height for p, rows in parts)


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_row_orders_are_permutations_and_one_groups_like_rows(weights: np.ndarray) -> None:
    sets = Counter(bytes(row) for row in weights != 0)
    for order in row_orders(weights, [1, 2, 4]):
        assert sorted(order.rows) == list(range(len(weights)))
        lists = [bytes(row) for row in weights[order.rows] != 0]
        whole = sum(n // order.height for n in sets.values())
        blocks = [lists[i:i + order.height] for i in range(0, whole * order.height, order.height)]
        if order.grouped:
            assert all(len(set(block)) == 1 for block in blocks), "whole blocks of equal lists come first"


def blocks(rng: np.random.Generator, rows: int, columns: int, height: int, kept: float) -> np.ndarray:
    return np.repeat(rng.random((rows // height, columns)) < kept, height, 0)


def layer(keep: np.ndarray, kind: str) -> StepInfo:
    """How a layer whose weights [filters, channels] are kept by ``keep`` is compiled, on an AVX-512 core."""
    b = Bundle(3)
    filters, channels = keep.shape
    if kind == "conv":
        b.output(b.conv(b.value(1, channels, 14, 14), b.weights(filters, channels, 1, 1, keep=keep[..., None, None])))
    else:
        b.output(b.node("Linear", b.value(1, channels), b.weights(filters, channels, keep=keep)))
    program = compile_graph(b.graph, Target.named("x86-64-v4"))
    return next(step for step in program.steps if step.macs)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_structure_in_the_zeros_is_found(kind: str, rng: np.random.Generator) -> None:
    rows, columns = 128, 256

    def stored(keep: np.ndarray) -> float:
        """Bytes in the blob per byte of a kept weight."""
        step = layer(keep, kind)
        assert step.kept_macs * rows * columns == step.macs * int(keep.sum())
        return step.weight_bytes / max(4 * keep.sum(), 1)

    dense = layer(np.ones((rows, columns), bool), kind)
    assert dense.weight_bytes >= 4 * rows * columns and "dense" in dense.reason
    eight = blocks(rng, rows, columns, 8, 1 / 6)
    assert stored(eight) < 1.15                                                        # 1 + 1/8 of indices
    assert stored(eight[rng.permutation(rows)]) < 1.25                                 # the same rows in any order
    assert stored(blocks(rng, rows, columns, 16, 1 / 6)) < 1.15
    assert stored(rng.random((rows, columns)) < 0.05) < 3.5                            # a weight and an index, or so
    empty = eight.copy()
    empty[:64] = False
    assert stored(empty) < 1.2
    columns_gone = np.ones((rows, columns), bool)
    columns_gone[:, 64:] = False
    assert stored(columns_gone) < 1.3
    almost = rng.random((rows, columns)) < 0.97                                        # not worth an index per weight
    step = layer(almost, kind)
    assert step.weight_bytes < 1.3 * 4 * rows * columns and "dense" in step.reason


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_fewer_weights_never_take_more_bytes(kind: str, rng: np.random.Generator) -> None:
    order = rng.random((16, 200))
    previous = float("inf")
    for kept in (1.0, 0.6, 0.3, 0.15, 0.05, 0.01, 0.0):
        step = layer(np.repeat(order < kept, 8, 0), kind)
        assert step.weight_bytes <= 1.05 * previous
        previous = step.weight_bytes
    assert previous == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.sampled_from((2, 3, 9, 25, 49)), st.integers(1, 30),
       st.sampled_from((1, 4, 6, 13)), st.integers(0, 2 ** 32 - 1))
def test_lists_hold_every_weight_once(filters: int, channels: int, taps: int, sets: int, most: int,
                                      seed: int) -> None:
    rng = np.random.default_rng(seed)
    library = rng.random((sets, taps)) < rng.random((sets, 1))
    weights = rng.normal(size=(filters, channels, taps)) * library[rng.integers(0, sets, (filters, channels))]
    matrix = weights.reshape(filters, -1).astype(np.float32)
    found, unpacked = lists_of(matrix != 0, taps, most), np.zeros_like(matrix)
    assert [lists.columns.shape[1] for lists in found] == sorted({x.columns.shape[1] for x in found}, reverse=True)
    for lists in found:
        k = lists.columns.shape[1]
        assert k <= most and lists.counts.sum() == len(lists.filters)
        assert len({tuple(c) for c in lists.columns.tolist()}) == len(lists.columns)
        assert (np.ptp(lists.columns // taps, axis=1) == 0).all(), "a list of more than one channel"
        entries = np.repeat(lists.columns, lists.counts, axis=0)
        assert not unpacked[lists.filters[:, None], entries].any(), "a weight twice"
        unpacked[lists.filters[:, None], entries] = lists.weights(matrix)
    np.testing.assert_array_equal(unpacked, matrix)
    if most >= taps:  # nothing is cut: the count that the cost model sees is exact
        counted = {k: entries for k, _, entries in runs_of(tap_sets(matrix != 0, taps), taps).lists(most)}
        assert counted == {x.columns.shape[1]: len(x.filters) for x in found}


@pytest.mark.parametrize("batch", [1, 3])
def test_dead_channels_count_as_work_of_the_dense_layer(batch: int) -> None:
    b = Bundle(9)
    alive = np.arange(12)[:, None, None, None] % 3 != 0
    x = b.value(batch, 5, 8, 7)
    first = b.conv(x, b.weights(12, 5, 3, 3, keep=alive), bias=False, pads=(1, 1, 1, 1), epilogue=[fused("Relu")])
    wide = b.conv(first, b.weights(12, 12, 1, 1, keep=alive), epilogue=[fused("Silu")])
    b.output(b.conv(wide, b.weights(6, 12, 1, 1)))
    program = check(b, "host")
    layers = [step for step in program.steps if step.kind == "conv"]
    pixels = batch * 8 * 7
    assert [step.macs for step in layers] == [pixels * n for n in (12 * 45, 144, 72)]
    assert [step.kept_macs for step in layers] == [pixels * n for n in (8 * 45, 64, 48)]
