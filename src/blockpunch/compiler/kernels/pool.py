"""Pooling windows: first down the columns (vectors along a row), then along the row."""

from __future__ import annotations

from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_code, operands
from blockpunch.compiler.kernels.elementwise import finish
from blockpunch.graph.ir import Graph, Node


class Pool(Kernel):
    """MaxPool and AveragePool of any window, stride, dilation and padding."""

    kind = "pool"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """Both pools on 4-D values."""
        return node.op in ("MaxPool", "AveragePool") and not operands(node)

    def lower(self, node: Node, ctx: Context) -> Step:
        """One plane per unit; a padded line holds the window's rows reduced to one."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        n, c, h, w = x.shape
        oh, ow = y.shape[2:]
        (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
        dh, dw = node.attrs.get("dilation", (1, 1))
        top, left = node.attrs["pads"][:2]
        line = max((ow - 1) * sw + (kw - 1) * dw + 1, left + w)
        largest = node.op == "MaxPool"
        empty = "-__builtin_inff()" if largest else "0.0f"
        merge = (lambda p, a, b: f"{p}max({a}, {b})") if largest else (lambda p, a, b: f"({a} + {b})")
        scale = "" if largest else _average(node, w, kh, kw, sw, dw, left)
        epilogue = " ".join(epilogue_code(node.epilogue, "s_", []))
        body = f"""float line[{line}];
for (int j = 0; j < {line}; j++) line[j] = {empty};
for (int unit = begin; unit < end; unit++) {{
const float *p = {ctx.pointer(x)} + (ptrdiff_t)(unit / {c}) * {x.strides[0]} + (ptrdiff_t)(unit % {c}) * {x.strides[1]};
float *o = {ctx.pointer(y)} + (ptrdiff_t)(unit / {c}) * {y.strides[0]} + (ptrdiff_t)(unit % {c}) * {y.strides[1]};
for (int row = 0; row < {oh}; row++, o += {y.strides[2]}) {{
int rows = 0;
for (int ky = 0; ky < {kh}; ky++) {{
const int at = row * {sh} - {top} + ky * {dh};
if (at < 0 || at >= {h}) continue;
const float *q = p + at * {x.strides[2]};
float *l = line + {left};
int j = 0;
if (rows++ == 0) {{
for (; j + VL <= {w}; j += VL) v_store(l + j, v_load(q + j));
for (; j < {w}; j++) l[j] = q[j];
}} else {{
for (; j + VL <= {w}; j += VL) v_store(l + j, {merge("v_", "v_load(l + j)", "v_load(q + j)")});
for (; j < {w}; j++) l[j] = {merge("s_", "l[j]", "q[j]")};
}}
}}
if (!rows) for (int j = 0; j < {w}; j++) line[{left} + j] = {empty};
for (int j = 0; j < {ow}; j++) {{
float x = line[j * {sw}];
for (int kx = 1; kx < {kw}; kx++) x = {merge("s_", "x", f"line[j * {sw} + kx * {dw}]")};
{scale}
{epilogue}
o[j * {y.strides[3]}] = x;
}}
}}
}}"""
        return finish(node, self.kind, ctx, [(n * c, body)])


def _average(node: Node, w: int, kh: int, kw: int, sw: int, dw: int, left: int) -> str:
    """Divide by the window's size, or by the part of it that lies inside the map."""
    if node.attrs["count_include_pad"]:
        return f"x *= {1 / (kh * kw)!r}f;"
    return f"""int cols = 0;
for (int kx = 0; kx < {kw}; kx++) cols += (unsigned)(j * {sw} - {left} + kx * {dw}) < {w}u;
x /= rows * cols ? (float)(rows * cols) : 1.0f;"""
