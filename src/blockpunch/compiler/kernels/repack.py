"""Bringing a map into planar form, every phase of a stride as channels of its own."""

from __future__ import annotations

from blockpunch.compiler.kernels.base import Context, Kernel, Step, together
from blockpunch.compiler.layout import View
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node


class Repack(Kernel):
    """Writes each plane once, margins included; a row is read once for all of its phases."""

    kind = "repack"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """The operator that legalisation adds."""
        return node.op == "Repack"

    def lower(self, node: Node, ctx: Context) -> Step:
        """One part per row phase, with the column phases side by side."""
        x, y = ctx.view(node.inputs[0]), ctx.view(node.outputs[0])
        phases = list(node.attrs["phases"])
        n, c = x.shape[:2]
        parts = []
        for py in sorted({phase[0] for phase in phases}):
            columns = {px: phases.index((py, px)) for _, px in phases if (py, px) in phases}
            parts.append((n * c, _rows(x, y, py, columns, node.attrs["step"], ctx)))
        info = StepInfo(node.name, self.kind, node.path,
                        packing=f"{len(phases)} phases" if len(phases) > 1 else "planar")
        units, body = together(parts)
        return Step(info, units, body, (x.root,), (y.root,))


def _rows(x: View, y: View, py: int, columns: dict[int, int], step: tuple[int, int], ctx: Context) -> str:
    """C statements that write row phase ``py`` of one channel per unit; ``columns``: column phase -> its phase."""
    plane, (sh, sw) = y.plane, step
    assert plane
    c, h, w = x.shape[1:]
    rows = max(-(-(h - py) // sh), 0)
    lines = [f"for (int unit = begin; unit < end; unit++) {{\nconst int image = unit / {c}, ch = unit % {c};",
             f"const float *restrict p = {ctx.pointer(x)} + (ptrdiff_t)image * {x.strides[0]} + "
             f"(ptrdiff_t)ch * {x.strides[1]} + {py * x.strides[2]};"]
    for px, phase in columns.items():
        lines.append(f"float *restrict o{px} = {ctx.pointer(y)} + (ptrdiff_t)image * {y.strides[0]} + "
                     f"(ptrdiff_t)(ch + {phase * c}) * {y.strides[1]};")
        lines.append(f"zero(o{px} - {plane.origin}, {plane.origin});")
    lines.append(f"for (int row = 0; row < {rows}; row++, p += {sh * x.strides[2]}) {{\nint j = 0;")
    if x.strides[3] == 1 and sw <= 2:  # whole vectors inside the row
        stores = [f"v_store(o{px} + j, {('v_even', 'v_odd')[px] + '(a, b)' if sw == 2 else 'a'});" for px in columns]
        second = "const vf b = v_load(p + 2 * j + VL);" if sw == 2 else ""
        lines.append(f"for (int i = 0; i < {w}; i += 16) __builtin_prefetch(p + i + {4 * sh * x.strides[2]});")
        lines.append(f"for (; {sw} * (j + VL) <= {w}; j += VL) {{ const vf a = v_load(p + {sw} * j); {second} "
                     f"{' '.join(stores)} }}")
    for px in columns:
        cols = max(-(-(w - px) // sw), 0)
        lines.append(f"for (int i = j; i < {cols}; i++) o{px}[i] = p[(i * {sw} + {px}) * {x.strides[3]}];")
        lines.append(f"zero(o{px} + {cols}, {plane.row - cols});\no{px} += {plane.row};")
    lines.append("}")
    lines += [f"zero(o{px}, {plane.stride - plane.origin - rows * plane.row});" for px in columns]
    return "\n".join([*lines, "}"])
