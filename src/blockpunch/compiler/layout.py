"""Where every value lives: buffers, and views into them.

Feature maps are *planar*: NCHW with a margin of zeros around every channel plane, so that a k x k convolution reads its
taps at fixed distances from the output pixel and no im2col exists::

    |<- origin ->|                          rows are `row` floats apart; the gap behind a row is the right margin
    0 0 0 0 0 0 0 a a a a 0 a a a a 0 ... 0   of that row and the left margin of the next

Layers that walk the flat plane with one index for input and output must agree on the row stride; those values form a
*stride group*. Concatenated and sliced values are views into one buffer (no copies); those form an *alias set* and
share the whole plane geometry. Everything that is not a 4-D map of more than one pixel is contiguous ("flat").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod

from blockpunch.graph.ir import Graph, Node

CACHE_LINE_FLOATS = 16


@dataclass(frozen=True)
class Plane:
    """Geometry of one channel plane, in floats. ``zero_margin``: the margin is read, so its writer must zero it."""

    h: int
    w: int
    row: int
    origin: int
    stride: int
    zero_margin: bool


@dataclass(frozen=True)
class View:
    """A tensor inside the buffer of ``root``: element (i0, i1, ...) is at ``offset + sum(i * stride)`` floats."""

    root: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    plane: Plane | None = None

    @property
    def contiguous(self) -> bool:
        """Whether the elements follow each other in row-major order without gaps."""
        return self.strides == contiguous_strides(self.shape)


@dataclass
class Margin:
    """What readers need around a map, in pixels, and the longest row that anyone needs: pixels and a gap of zeros."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    row: int = 0

    def widen(self, other: Margin) -> None:
        """Take the larger of both, side by side."""
        self.top, self.bottom = max(self.top, other.top), max(self.bottom, other.bottom)
        self.left, self.right = max(self.left, other.left), max(self.right, other.right)
        self.row = max(self.row, other.row)


@dataclass
class Needs:
    """What the kernels ask of the layout: margins per value, and pairs of values that must share their row stride.

    The convolutions ``sideless`` shall ask for no gap between the rows of their maps.
    """

    sideless: frozenset[str] = frozenset()
    margins: dict[str, Margin] = field(default_factory=dict)
    same_row: list[tuple[str, str]] = field(default_factory=list)

    def margin(self, value: str, margin: Margin) -> None:
        """Ask for a margin around ``value``."""
        self.margins.setdefault(value, Margin()).widen(margin)


@dataclass
class Layout:
    """The result: a view per value, the floats that each buffer takes, and each map's stride group (by a member)."""

    views: dict[str, View]
    buffers: dict[str, int]
    groups: dict[str, str]


class _Sets:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while (above := self._parent.get(root, root)) != root:
            root = above
        while (above := self._parent.get(name, name)) != root:
            self._parent[name], name = root, above
        return root

    def union(self, a: str, b: str) -> None:
        self._parent[self.find(a)] = self.find(b)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(prod(shape[i + 1:]) for i in range(len(shape)))


def is_map(shape: tuple[int, ...]) -> bool:
    """Whether a value is a feature map that is stored planar (4-D with more than one pixel)."""
    return len(shape) == 4 and shape[2] * shape[3] > 1


def assign(graph: Graph, needs: Needs, vector_floats: int) -> Layout:
    """Give every value of a legalised graph its view.

    Args:
        graph: after :func:`blockpunch.compiler.legalise.legalise`.
        needs: what the kernels of its nodes ask for.
        vector_floats: vector width; planes and origins are aligned to it.
    """
    parents = _aliases(graph)
    outside = {*graph.inputs, *graph.outputs}  # the caller's arrays are contiguous
    planar = {name for name, v in graph.values.items() if is_map(v.shape) and name not in outside}
    planes, groups = _planes(graph, planar, parents, needs, vector_floats)
    views: dict[str, View] = {}
    buffers: dict[str, int] = {}
    for name in graph.values:
        if name not in parents:
            views[name], buffers[name] = _own_buffer(graph, name, planes.get(name), vector_floats)
    for name in graph.values:
        if name in parents:
            views[name] = _view_in_parent(graph, name, parents, views)
    return Layout(views, buffers, groups)


def _own_buffer(graph: Graph, name: str, plane: Plane | None, vector_floats: int) -> tuple[View, int]:
    shape = graph.values[name].shape
    if plane is None:
        return View(name, 0, shape, contiguous_strides(shape)), prod(shape) + vector_floats
    n, c = shape[:2]
    strides = (c * plane.stride, plane.stride, plane.row, 1)
    # behind the last plane: whole vectors are read from the last rows, shifted by the taps
    slack = plane.origin + 2 * plane.row + CACHE_LINE_FLOATS * 4
    return View(name, plane.origin, shape, strides, plane), n * c * plane.stride + slack


def _view_in_parent(graph: Graph, name: str, parents: dict[str, tuple[str, int]], views: dict[str, View]) -> View:
    if name in views:
        return views[name]
    parent, start = parents[name]
    above = _view_in_parent(graph, parent, parents, views) if parent in parents else views[parent]
    shape = graph.values[name].shape
    if above.plane is not None:
        view = replace(above, offset=above.offset + start * above.plane.stride, shape=shape)
    else:
        view = View(above.root, above.offset + start, shape, contiguous_strides(shape))
    views[name] = view
    return view


def _aliases(graph: Graph) -> dict[str, tuple[str, int]]:
    """Value -> (value whose buffer it lives in, first channel of a map or first element of a flat value)."""
    parents: dict[str, tuple[str, int]] = {}
    producer = graph.producer()
    fixed = set(graph.inputs) | set(graph.outputs)
    for node in graph:
        if node.op == "Concat":
            parents |= _concat_aliases(graph, node, producer, fixed | parents.keys())
    for node in graph:
        if node.op in ("Slice", "Reshape") and not node.epilogue and node.outputs[0] not in fixed | parents.keys():
            source = node.inputs[0]
            start = _slice_start(graph, node) if node.op == "Slice" else _reshape_start(graph, node)
            if start is not None and source in graph.values and source not in graph.inputs:
                parents[node.outputs[0]] = (source, start)
    return parents


def _concat_aliases(graph: Graph, node: Node, producer: dict[str, Node],
                    taken: set[str]) -> dict[str, tuple[str, int]]:
    out, axis = node.outputs[0], node.attrs["axis"]
    shape = graph.shape(out)
    if node.epilogue or not (axis == 1 if is_map(shape) else prod(shape[:axis]) == 1):
        return {}
    inner = 1 if is_map(shape) else prod(shape[axis + 1:])
    found: dict[str, tuple[str, int]] = {}
    start = 0
    for name in node.inputs:
        if (name in producer and name not in taken and node.inputs.count(name) == 1
                and is_map(graph.shape(name)) == is_map(shape)):
            found[name] = (out, start * inner)
        start += graph.shape(name)[axis]
    return found


def _slice_start(graph: Graph, node: Node) -> int | None:
    """First channel, when the slice takes whole channels of a map one after the other."""
    shape = graph.shape(node.inputs[0])
    if not is_map(shape) or tuple(node.attrs["axes"]) != (1,) or tuple(node.attrs["steps"]) != (1,):
        return None
    return int(node.attrs["starts"][0])


def _reshape_start(graph: Graph, node: Node) -> int | None:
    """0 when both sides are flat, so that a reshape only renames."""
    return None if is_map(graph.shape(node.inputs[0])) or is_map(graph.shape(node.outputs[0])) else 0


def _planes(graph: Graph, planar: set[str], parents: dict[str, tuple[str, int]], needs: Needs,
            vector_floats: int) -> tuple[dict[str, Plane], dict[str, str]]:
    """Plane geometry per value: shared in an alias set, with the row stride of the stride group; and the groups."""
    alias, group = _Sets(), _Sets()
    for name, (parent, _) in parents.items():
        if name in planar:
            alias.union(name, parent)
    for a, b in needs.same_row:
        if a in planar and b in planar:
            group.union(alias.find(a), alias.find(b))
    for name in planar:  # stride groups were joined through representatives that later unions may have moved
        group.union(name, alias.find(name))

    margins: dict[str, Margin] = {}
    rows: dict[str, int] = {}
    for name in planar:
        margin = needs.margins.get(name, Margin())
        margins.setdefault(alias.find(name), Margin()).widen(margin)
        rows[group.find(name)] = max(rows.get(group.find(name), 0), graph.values[name].shape[3], margin.row)
    groups = {name: group.find(name) for name in planar}
    return {name: _plane(graph.values[name].shape, margins[alias.find(name)], rows[groups[name]], vector_floats)
            for name in planar}, groups


def _plane(shape: tuple[int, ...], margin: Margin, row: int, vector_floats: int) -> Plane:
    h, w = shape[2:]
    align = max(vector_floats, CACHE_LINE_FLOATS)
    origin = _up(margin.top * row + margin.left, align)
    body = max(h * row + margin.bottom * row + margin.right, _up(h * row, align))
    lines = _up(origin + body, align) // CACHE_LINE_FLOATS
    lines += 1 - lines % 2  # an odd number of cache lines: planes spread over all sets of the cache
    zero = max(margin.top, margin.bottom, margin.left, margin.right) > 0
    return Plane(h, w, row, origin, lines * CACHE_LINE_FLOATS, zero)


def _up(x: int, step: int) -> int:
    return -(-x // step) * step


def flat_pixels(planes: Iterable[Plane], h: int, w: int) -> int:
    """Floats from the first to the last of ``h x w`` pixels in the flat plane (all ``planes`` share the row stride)."""
    (row,) = {p.row for p in planes}
    return (h - 1) * row + w
