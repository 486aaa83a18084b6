"""Pooling windows: first down the columns (vectors along a row), then along the row."""

from __future__ import annotations

from collections.abc import Callable

from blockpunch.compiler.kernels.base import Context, Kernel, Step, epilogue_code, operands
from blockpunch.compiler.kernels.elementwise import finish
from blockpunch.graph.ir import Graph, Node


def _max(prefix: str, a: str, b: str) -> str:
    return f"{prefix}max({a}, {b})"


def _add(prefix: str, a: str, b: str) -> str:
    return f"({a} + {b})"


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
        spare = 2 * ctx.target.vector_floats  # vectors of strided values are read whole
        largest = node.op == "MaxPool"
        empty = "-__builtin_inff()" if largest else "0.0f"
        merge = _max if largest else _add
        scale = "" if largest else _average(node, w, kh, kw, sw, dw, left)
        epilogue = " ".join(epilogue_code(node.epilogue, "s_", []))

        def tail(vector: str, scalar: str) -> str:
            """The rest of a row: the input may be read past its end, if it is not the caller's array."""
            if x.plane:
                return f"if (j < {w}) v_store(l + j, v_pick(v_lanes((1u << ({w} - j)) - 1), {vector}, v_set({empty})));"
            return f"for (; j < {w}; j++) l[j] = {scalar};"

        body = f"""float line[{line + spare}];
for (int j = 0; j < {line + spare}; j++) line[j] = {empty};
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
for (int j = 0; j < {w}; j += 16) __builtin_prefetch(q + j + {4 * x.strides[2]});
int j = 0;
if (rows++ == 0) {{
for (; j + VL <= {w}; j += VL) v_store(l + j, v_load(q + j));
{tail("v_load(q + j)", "q[j]")}
}} else {{
for (; j + VL <= {w}; j += VL) v_store(l + j, {merge("v_", "v_load(l + j)", "v_load(q + j)")});
{tail(merge("v_", "v_load(l + j)", "v_load(q + j)"), merge("s_", "l[j]", "q[j]"))}
}}
}}
if (!rows) for (int j = 0; j < {w}; j++) line[{left} + j] = {empty};
int j = 0;
{_vectors(node, ow, merge)}
for (; j < {ow}; j++) {{
float x = line[j * {sw}];
for (int kx = 1; kx < {kw}; kx++) x = {merge("s_", "x", f"line[j * {sw} + kx * {dw}]")};
{scale}
{epilogue}
o[j * {y.strides[3]}] = x;
}}
}}
}}"""
        return finish(node, self.kind, ctx, [(n * c, body)])


def _vectors(node: Node, ow: int, merge: Callable[[str, str, str], str]) -> str:
    """The loop along the row in vectors: contiguous for stride 1, every second value for stride 2."""
    stride, dilation = node.attrs["stride"][1], node.attrs.get("dilation", (1, 1))[1]
    whole = node.op == "MaxPool" or node.attrs["count_include_pad"]
    if stride > 2 or not whole:
        return ""
    def load(kx: int) -> str:
        offset = kx * dilation
        if stride == 1:
            return f"v_load(line + j + {offset})"
        at = f"line + 2 * j + {offset - offset % 2}"  # neighbours share their loads
        return f"v_{('even', 'odd')[offset % 2]}_mixed(v_load({at}), v_load({at} + VL))"

    value = load(0)
    for kx in range(1, node.attrs["kernel"][1]):
        value = merge("v_", value, load(kx))
    if stride == 2:
        value = f"v_in_order({value})"
    kh, kw = node.attrs["kernel"]
    scale = "" if node.op == "MaxPool" else f"x *= {1 / (kh * kw)!r}f;"
    epilogue = " ".join(epilogue_code(node.epilogue, "v_", []))
    one = f"vf x = {value}; {scale} {epilogue}"
    return (f"for (; j + VL <= {ow}; j += VL) {{ {one} v_store(o + j, x); }}\n"
            f"if (j < {ow}) {{ {one} v_store_first(o + j, x, {ow} - j); j = {ow}; }}")


def _average(node: Node, w: int, kh: int, kw: int, sw: int, dw: int, left: int) -> str:
    """Divide by the window's size, or by the part of it that lies inside the map."""
    if node.attrs["count_include_pad"]:
        return f"x *= {1 / (kh * kw)!r}f;"
    return f"""int cols = 0;
for (int kx = 0; kx < {kw}; kx++) cols += (unsigned)(j * {sw} - {left} + kx * {dw}) < {w}u;
x /= rows * cols ? (float)(rows * cols) : 1.0f;"""
