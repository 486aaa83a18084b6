"""Operators that look along an axis: means, maxima and softmax."""

from __future__ import annotations

from math import prod

from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_code, operands
from blockpunch.compiler.kernels.elementwise import finish
from blockpunch.compiler.layout import View
from blockpunch.graph.ir import Graph, Node

_COLUMNS = 256
"""Lines side by side that make a unit of a softmax."""


def _outer_loop(dims: list[int], strides: list[tuple[int, int]], unit: str = "unit") -> list[str]:
    """Decode ``unit`` into indices over ``dims`` and advance p (input) and o (output) by their strides."""
    lines = [f"int rest = {unit};"]
    for d in range(len(dims) - 1, -1, -1):
        a, b = strides[d]
        lines.append(f"{{ const ptrdiff_t i = rest % {dims[d]}; rest /= {dims[d]}; p += i * {a}; o += i * {b}; }}")
    return [*lines, "(void)rest;"]


class Reduce(Kernel):
    """ReduceMean and ReduceMax over any axes, and GlobalAveragePool."""

    kind = "reduce"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """These operators, with activations fused at most."""
        return node.op in ("ReduceMean", "ReduceMax", "GlobalAveragePool") and not operands(node)

    def lower(self, node: Node, ctx: Context) -> Step:
        """One result per unit."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        axes = (2, 3) if node.op == "GlobalAveragePool" else tuple(node.attrs["axes"])
        out_strides = _strides_with_axes(x, y, axes)
        kept = [d for d in range(len(x.shape)) if d not in axes]
        largest, last = node.op == "ReduceMax", axes[-1]
        take = "{0} = {1}max({0}, {2});" if largest else "{0} += {2};"
        each = f"q[j * (ptrdiff_t){x.strides[last]}]"
        lines = ["for (int unit = begin; unit < end; unit++) {", f"const float *p = {ctx.pointer(x)};",
                 f"float *o = {ctx.pointer(y)};",
                 *_outer_loop([x.shape[d] for d in kept], [(x.strides[d], out_strides[d]) for d in kept]),
                 "float x = -__builtin_inff(); vf all = v_set(x);" if largest else "float x = 0; vf all = v_set(x);"]
        for d in axes[:-1]:
            lines.append(f"for (int i{d} = 0; i{d} < {x.shape[d]}; i{d}++) {{")
        offset = "".join(f" + i{d} * (ptrdiff_t){x.strides[d]}" for d in axes[:-1])
        lines += [f"const float *q = p{offset};", "int j = 0;"]
        if x.strides[last] == 1:
            lines.append(f"for (; j + VL <= {x.shape[last]}; j += VL) {take.format('all', 'v_', 'v_load(q + j)')}")
        lines.append(f"for (; j < {x.shape[last]}; j++) {take.format('x', 's_', each)}")
        lines += ["}"] * len(axes[:-1])
        lines.append(f"for (int l = 0; l < VL; l++) {take.format('x', 's_', 'all[l]')}")
        if not largest:
            lines.append(f"x *= {1 / prod(x.shape[d] for d in axes)!r}f;")
        lines += [*epilogue_code(node.epilogue, "s_", []), "*o = x;", "}"]
        return finish(node, self.kind, ctx, [(prod(x.shape[d] for d in kept), "\n".join(lines))])


def _strides_with_axes(x: View, y: View, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of the result per dimension of the input."""
    if len(y.shape) == len(x.shape):
        return y.strides
    left = iter(y.strides)
    return tuple(0 if d in axes else next(left) for d in range(len(x.shape)))


class Softmax(Kernel):
    """Softmax along one axis."""

    kind = "softmax"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Softmax without an epilogue."""
        return node.op == "Softmax" and not node.epilogue

    def lower(self, node: Node, ctx: Context) -> Step:
        """One line along the axis per unit; or many lines side by side, where these follow each other in memory."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        axis = node.attrs["axis"]
        count, strides = x.shape[axis], (x.strides[axis], y.strides[axis])
        kept = [d for d in range(len(x.shape)) if d != axis]
        beside = [d for d in kept if x.strides[d] == y.strides[d] == 1 and x.shape[d] >= ctx.target.vector_floats]
        outer = [d for d in kept if d not in beside[:1]]
        lines = ["for (int unit = begin; unit < end; unit++) {", f"const float *p = {ctx.pointer(x)};",
                 f"float *o = {ctx.pointer(y)};"]
        columns = x.shape[beside[0]] if beside else 1
        blocks = -(-columns // _COLUMNS)
        lines += _outer_loop([x.shape[d] for d in outer], [(x.strides[d], y.strides[d]) for d in outer],
                             f"unit / {blocks}")
        if beside:
            lines += [f"const int first = unit % {blocks} * {_COLUMNS}, last = first + {_COLUMNS} < {columns} ? "
                      f"first + {_COLUMNS} : {columns};", "int i = first;", "for (; i + VL <= last; i += VL) {",
                      *_softmax_lines("v_", "vf", count, strides, "i"), "}", "for (; i < last; i++) {",
                      *_softmax_lines("s_", "float", count, strides, "i"), "}", "}"]
        elif strides == (1, 1):
            lines += [*_softmax_row(count), "}"]
        else:
            lines += [*_softmax_lines("s_", "float", count, strides, "0"), "}"]
        return finish(node, self.kind, ctx, [(prod(x.shape[d] for d in outer) * blocks, "\n".join(lines))])


def _softmax_lines(prefix: str, ctype: str, count: int, strides: tuple[int, int], at: str) -> list[str]:
    """Softmax of one line, or a vector of lines, in three passes: largest, exponentials and their sum, scale."""
    load, store = ("v_load({})", "v_store({}, {});") if prefix == "v_" else ("*({})", "*({}) = {};")
    source, target = f"p + {at} + j * {strides[0]}", f"o + {at} + j * {strides[1]}"
    return [f"{ctype} top = {load.format(f'p + {at}')}, sum = {prefix}set(0.0f);",
            f"for (ptrdiff_t j = 1; j < {count}; j++) top = {prefix}max(top, {load.format(source)});",
            f"for (ptrdiff_t j = 0; j < {count}; j++) {{ const {ctype} e = {prefix}exp({load.format(source)} - top); "
            f"{store.format(target, 'e')} sum += e; }}", f"const {ctype} scale = 1.0f / sum;",
            f"for (ptrdiff_t j = 0; j < {count}; j++) {store.format(target, f'{load.format(target)} * scale')}"]


def _softmax_row(count: int) -> list[str]:
    """The same for one line that lies along vectors."""
    return ["float top = p[0], sum = 0; vf tops = v_set(top), sums = v_set(0.0f); ptrdiff_t j = 0;",
            f"for (; j + VL <= {count}; j += VL) tops = v_max(tops, v_load(p + j));",
            f"for (; j < {count}; j++) top = s_max(top, p[j]);",
            "for (int l = 0; l < VL; l++) top = s_max(top, tops[l]);",
            f"for (j = 0; j + VL <= {count}; j += VL) {{ const vf e = v_exp(v_load(p + j) - top); v_store(o + j, e); "
            "sums += e; }",
            f"for (; j < {count}; j++) {{ o[j] = s_exp(p[j] - top); sum += o[j]; }}",
            "for (int l = 0; l < VL; l++) sum += sums[l];", "const float scale = 1.0f / sum;",
            f"for (j = 0; j + VL <= {count}; j += VL) v_store(o + j, v_load(o + j) * scale);",
            f"for (; j < {count}; j++) o[j] *= scale;"]
