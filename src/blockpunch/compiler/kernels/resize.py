"""Resizing of maps, nearest and linear: where each sample comes from is worked out at compile time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_code, operands
from blockpunch.compiler.kernels.elementwise import finish
from blockpunch.compiler.layout import View
from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.operators import resize_linear, resize_nearest


class Resize(Kernel):
    """Any size; the sample positions of both axes are tables."""

    kind = "resize"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Resize with activations fused at most."""
        return node.op == "Resize" and not operands(node)

    def lower(self, node: Node, ctx: Context) -> Step:
        """One row of the result per unit."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        c, (oh, ow) = y.shape[1], y.shape[2:]
        if _doubles(node, x, y):
            return finish(node, self.kind, ctx, [_double(node, ctx, x, y)])
        inner = _nearest(node, ctx, x) if node.attrs["mode"] == "nearest" else _linear(node, ctx, x)
        epilogue = " ".join(epilogue_code(node.epilogue, "s_", []))
        body = f"""for (int unit = begin; unit < end; unit++) {{
const int row = unit % {oh}, ch = unit / {oh} % {c}, image = unit / {oh * c};
const float *p = {ctx.pointer(x)} + (ptrdiff_t)image * {x.strides[0]} + (ptrdiff_t)ch * {x.strides[1]};
float *o = {ctx.pointer(y)} + (ptrdiff_t)image * {y.strides[0]} + (ptrdiff_t)ch * {y.strides[1]} + row * {y.strides[2]};
{inner[0]}
for (int j = 0; j < {ow}; j++) {{ float x = {inner[1]}; {epilogue} o[j * {y.strides[3]}] = x; }}
}}"""
        step = finish(node, self.kind, ctx, [(y.shape[0] * c * oh, body)])
        return step if node.attrs["mode"] == "nearest" else replace(step, thread_floats=x.shape[3])


def _doubles(node: Node, x: View, y: View) -> bool:
    """Whether every pixel simply becomes a square of two by two, on rows without gaps between pixels."""
    if node.attrs["mode"] != "nearest" or (x.strides[3], y.strides[3]) != (1, 1):
        return False
    positions = (resize_nearest(node.attrs["coordinates"], node.attrs["nearest_rounding"], x.shape[2 + axis],
                                node.attrs["size"][axis], node.attrs["scales"][axis]) for axis in (0, 1))
    return all(p.tolist() == [i // 2 for i in range(2 * n)] for p, n in zip(positions, x.shape[2:], strict=True))


def _double(node: Node, ctx: Context, x: View, y: View) -> tuple[int, str]:
    """(units, C statements): one plane per unit, two rows of the result per row of the input."""
    c, h, w = x.shape[1:]
    vector, scalar = (" ".join(epilogue_code(node.epilogue, p, [])) for p in ("v_", "s_"))
    return x.shape[0] * c, f"""for (int unit = begin; unit < end; unit++) {{
const float *p = {ctx.pointer(x)} + (ptrdiff_t)(unit / {c}) * {x.strides[0]} + (ptrdiff_t)(unit % {c}) * {x.strides[1]};
float *o = {ctx.pointer(y)} + (ptrdiff_t)(unit / {c}) * {y.strides[0]} + (ptrdiff_t)(unit % {c}) * {y.strides[1]};
for (int row = 0; row < {h}; row++, p += {x.strides[2]}, o += {2 * y.strides[2]}) {{
float *o2 = o + {y.strides[2]};
int j = 0;
for (; j + VL <= {w}; j += VL) {{
vf x = v_load(p + j); {vector}
const vf l = v_double_low(x), r = v_double_high(x);
v_store(o + 2 * j, l); v_store(o + 2 * j + VL, r); v_store(o2 + 2 * j, l); v_store(o2 + 2 * j + VL, r);
}}
for (; j < {w}; j++) {{ float x = p[j]; {scalar} o[2 * j] = o[2 * j + 1] = o2[2 * j] = o2[2 * j + 1] = x; }}
}}
}}"""


def _nearest(node: Node, ctx: Context, x: View) -> tuple[str, str]:
    tables = []
    for axis in (0, 1):
        positions = resize_nearest(node.attrs["coordinates"], node.attrs["nearest_rounding"], x.shape[2 + axis],
                                   node.attrs["size"][axis], node.attrs["scales"][axis])
        tables.append(ctx.table("int32_t", (positions * x.strides[2 + axis]).astype(np.int32)))
    return f"const int32_t *col = {tables[1]};\nconst float *q = p + {tables[0]}[row];", "q[col[j]]"


def _linear(node: Node, ctx: Context, x: View) -> tuple[str, str]:
    """Both rows blended into one first, a whole vector at a time; then between its pixels."""
    tables = []
    for axis in (0, 1):
        left, right, weight = resize_linear(node.attrs["coordinates"], x.shape[2 + axis], node.attrs["size"][axis],
                                            node.attrs["scales"][axis])
        stride = x.strides[2] if axis == 0 else 1
        tables.append((ctx.table("int32_t", (left * stride).astype(np.int32)),
                       ctx.table("int32_t", (right * stride).astype(np.int32)), ctx.table("float", weight)))
    rows, cols = tables
    w, step = x.shape[3], x.strides[3]
    head = f"""float *line = THREAD_SCRATCH;
{{
const float *q = p + {rows[0]}[row], *r = p + {rows[1]}[row];
const float fy = {rows[2]}[row];
for (int j = 0; j < {w}; j++) line[j] = q[j * {step}] + fy * (r[j * {step}] - q[j * {step}]);
}}
const float *fx = {cols[2]};
const int32_t *left = {cols[0]}, *right = {cols[1]};"""
    return head, "line[left[j]] + fx[j] * (line[right[j]] - line[left[j]])"
