"""Elementwise operators and data movement: one loop nest over strided views serves them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from blockpunch.compiler.expressions import BINARY, UNARY, apply, number
from blockpunch.compiler.kernels.base import Context, Kernel, Step, core_inputs, epilogue_code, operands, together
from blockpunch.compiler.kernels.loops import Operand, Statement, broadcast, loop_nest, margin_fill
from blockpunch.compiler.layout import View, contiguous_strides
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node

Part = tuple[int, str]


def finish(node: Node, kind: str, ctx: Context, parts: list[Part]) -> Step:
    """A step of ``parts``, with the margins of the result zeroed."""
    y = ctx.view(node.outputs[0])
    margin = margin_fill(y, ctx.pointer(y))
    parts = [*parts, margin] if margin else parts
    reads = tuple(ctx.view(n).root for n in dict.fromkeys(node.inputs) if n in ctx.layout.views)
    units, body = together(parts)
    return Step(StepInfo(node.name, kind, node.path), units, body, reads, (y.root,))


def source(name: str, ctx: Context, shape: tuple[int, ...]) -> Operand:
    """A value or constant as an operand of a loop nest over ``shape``."""
    if name in ctx.graph.constants:
        array = ctx.graph.constants[name]
        return Operand(ctx.table("float", array.astype("float32", copy=False)),
                       broadcast(array.shape, contiguous_strides(array.shape), shape))
    view = ctx.view(name)
    return Operand(ctx.pointer(view), broadcast(view.shape, view.strides, shape))


def _statement(node: Node) -> Statement:
    """Statements that compute ``node`` and its epilogue on the values of its operands."""
    own = len(core_inputs(node))

    def statement(prefix: str, values: list[str]) -> list[str]:
        ctype = "vf" if prefix == "v_" else "float"
        lines = [f"const {ctype} q{i} = {v};" for i, v in enumerate(values)]
        first = apply(prefix, node.op, node.attrs, "q0", "q1" if own > 1 else None)
        return [*lines, f"{ctype} x = {first};",
                *epilogue_code(node.epilogue, prefix, [f"q{own + i}" for i in range(len(operands(node)))])]
    return statement


class Elementwise(Kernel):
    """Unary operators, and binary operators with broadcasting."""

    kind = "elementwise"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """All of the two tables of :mod:`blockpunch.compiler.expressions`."""
        return node.op in UNARY or node.op in BINARY

    def lower(self, node: Node, ctx: Context) -> Step:
        """One nest over the shape of the result."""
        y = ctx.view(node.outputs[0])
        names = [*core_inputs(node), *operands(node)]
        nest = loop_nest(y.shape, Operand(ctx.pointer(y), y.strides), [source(n, ctx, y.shape) for n in names],
                         _statement(node))
        return finish(node, self.kind, ctx, [nest])


def _copy(prefix: str, values: list[str]) -> list[str]:
    return [f"const {'vf' if prefix == 'v_' else 'float'} x = {values[0]};"]


def copy_nest(ctx: Context, shape: tuple[int, ...], to: View, to_strides: tuple[int, ...], to_offset: int, name: str,
              from_strides: tuple[int, ...], from_offset: int = 0) -> Part:
    """Copy ``shape`` elements between two strided places."""
    view = ctx.layout.views.get(name)
    pointer = ctx.pointer(view) if view else ctx.table("float", ctx.graph.constants[name].astype("float32", copy=False))
    return loop_nest(shape, Operand(_plus(ctx.pointer(to), to_offset), to_strides),
                     [Operand(_plus(pointer, from_offset), from_strides)], _copy)


def _plus(pointer: str, offset: int) -> str:
    return f"{pointer} + {offset}" if offset else pointer


def _strides(name: str, ctx: Context) -> tuple[int, ...]:
    return ctx.view(name).strides if name in ctx.layout.views else contiguous_strides(ctx.graph.constants[name].shape)


def _reshape(node: Node, ctx: Context) -> list[Part]:
    """Walk the side that is a map; the other side is contiguous (two maps go through a flat value)."""
    x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
    if x.contiguous:
        return [copy_nest(ctx, y.shape, y, y.strides, 0, node.inputs[0], contiguous_strides(y.shape))]
    return [copy_nest(ctx, x.shape, y, contiguous_strides(x.shape), 0, node.inputs[0], x.strides)]


def _transpose(node: Node, ctx: Context) -> list[Part]:
    y, strides = ctx.view(node.outputs[0]), _strides(node.inputs[0], ctx)
    return [copy_nest(ctx, y.shape, y, y.strides, 0, node.inputs[0], tuple(strides[p] for p in node.attrs["perm"]))]


def _slice(node: Node, ctx: Context) -> list[Part]:
    y, strides = ctx.view(node.outputs[0]), list(_strides(node.inputs[0], ctx))
    offset = 0
    for start, axis, step in zip(node.attrs["starts"], node.attrs["axes"], node.attrs["steps"], strict=True):
        offset += start * strides[axis]
        strides[axis] *= step
    return [copy_nest(ctx, y.shape, y, y.strides, 0, node.inputs[0], tuple(strides), offset)]


def _concat(node: Node, ctx: Context) -> list[Part]:
    """Inputs that were not written in place are copied."""
    y, axis = ctx.view(node.outputs[0]), node.attrs["axis"]
    parts, start = [], 0
    for name in node.inputs:
        shape = ctx.graph.shape(name)
        offset = start * y.strides[axis]
        view = ctx.layout.views.get(name)
        if view is None or (view.root, view.offset) != (y.root, y.offset + offset):
            parts.append(copy_nest(ctx, shape, y, y.strides, offset, name, _strides(name, ctx)))
        start += shape[axis]
    return parts


def _is_view(node: Node, ctx: Context) -> bool:
    """Whether the result of a Slice or Reshape lies where its input does; one buffer can also hold both, apart."""
    x, y = ctx.layout.views.get(node.inputs[0]), ctx.view(node.outputs[0])
    if x is None or x.root != y.root:
        return False
    if node.op == "Reshape":
        return x.offset == y.offset and x.contiguous and y.contiguous
    if node.op == "Slice" and set(node.attrs["steps"]) == {1}:
        first = zip(node.attrs["starts"], node.attrs["axes"], strict=True)
        return x.strides == y.strides and y.offset == x.offset + sum(start * x.strides[axis] for start, axis in first)
    return False


class Move(Kernel):
    """Reshape, Transpose, Slice and Concat: copies, where a view will not do."""

    kind = "move"
    _parts: ClassVar[dict[str, Callable[[Node, Context], list[Part]]]] = {
        "Reshape": _reshape, "Transpose": _transpose, "Slice": _slice, "Concat": _concat}

    def accepts(self, node: Node, graph: Graph) -> bool:
        """The four operators of the table above."""
        return node.op in self._parts

    def lower(self, node: Node, ctx: Context) -> Step | None:
        """Nothing to do where the result is a view of what is there already."""
        if _is_view(node, ctx):
            return None
        parts = self._parts[node.op](node, ctx)
        return finish(node, self.kind, ctx, parts) if parts else None


class Pad(Kernel):
    """Constant padding that no convolution could take in."""

    kind = "pad"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Pads of any rank; negative pads crop."""
        return node.op == "Pad"

    def lower(self, node: Node, ctx: Context) -> Step:
        """Fill, then copy; on one thread, since the two overlap."""
        y, rank = ctx.view(node.outputs[0]), len(ctx.view(node.outputs[0]).shape)
        x_shape, x_strides = ctx.graph.shape(node.inputs[0]), _strides(node.inputs[0], ctx)
        before, after = node.attrs["pads"][:rank], node.attrs["pads"][rank:]
        shape = tuple(n + min(b, 0) + min(a, 0) for n, b, a in zip(x_shape, before, after, strict=True))
        into = sum(max(b, 0) * s for b, s in zip(before, y.strides, strict=True))
        skip = sum(max(-b, 0) * s for b, s in zip(before, x_strides, strict=True))
        value = float(node.attrs["value"])
        fill = loop_nest(y.shape, Operand(ctx.pointer(y), y.strides), [],
                         lambda p, _: [f"const {'vf' if p == 'v_' else 'float'} x = {p}set({number(value)});"])
        copy = copy_nest(ctx, shape, y, y.strides, into, node.inputs[0], x_strides, skip)
        margin = margin_fill(y, ctx.pointer(y))
        body = "\n".join(f"{{ const int begin = 0, end = {units};\n{text}\n}}"
                         for units, text in (fill, copy, *([margin] if margin else [])))
        return Step(StepInfo(node.name, self.kind, node.path), 1, f"(void)begin; (void)end;\n{body}",
                    tuple(ctx.view(n).root for n in node.inputs if n in ctx.layout.views), (y.root,))
