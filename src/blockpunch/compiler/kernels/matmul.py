"""Products of two activations: tiles of rows times panels of columns, batch by batch."""

from __future__ import annotations

from math import prod

from blockpunch.compiler.kernels.base import Context, Kernel, Step, core_inputs, epilogue_code, render
from blockpunch.compiler.kernels.elementwise import finish, source
from blockpunch.compiler.program import StepInfo
from blockpunch.graph.ir import Graph, Node


class MatMul(Kernel):
    """MatMul of any two values or constants, however they lie in memory."""

    kind = "matmul"

    def accepts(self, node: Node, graph: Graph) -> bool:
        """MatMul of operands with at least two dimensions."""
        return node.op == "MatMul" and min(len(graph.shape(n)) for n in node.inputs[:2]) >= 2

    def lower(self, node: Node, ctx: Context) -> Step:
        """A unit is a tile of rows of one batch; a thread packs each panel of the second matrix once for all of its
        rows of a batch."""
        y = ctx.view(node.outputs[0])
        batch, (m, n) = y.shape[:-2], y.shape[-2:]
        a, b = (source(name, ctx, (*batch, *ctx.graph.shape(name)[-2:])) for name in core_inputs(node))
        depth = ctx.graph.shape(node.inputs[0])[-1]
        rows, parts = (8, 3) if ctx.target.registers >= 32 else (6, 2)
        parts = min(parts, -(-n // ctx.target.vector_floats))
        name, tiles = f"matmul_{rows}x{parts}", -(-m // rows)
        lines = ["for (int unit = begin; unit < end;) {", f"int rest = unit / {tiles};",
                 f"const int tile = unit % {tiles}, count = {tiles} - tile < end - unit ? {tiles} - tile : end - unit;",
                 "unit += count;"]
        places = {"a": a.pointer, "b": b.pointer, "y": ctx.pointer(y)}
        for d in range(len(batch) - 1, -1, -1):
            lines.append(f"const ptrdiff_t i{d} = rest % {batch[d]}; rest /= {batch[d]};")
            for key, strides in (("a", a.strides), ("b", b.strides), ("y", y.strides)):
                places[key] += f" + i{d} * {strides[d]}"
        last = f"{m} - tile * {rows} < count * {rows} ? {m} - tile * {rows} : count * {rows}"
        lines += ["(void)rest;", f"const int height = {last};",
                  f"float *o = {places['y']} + (ptrdiff_t)tile * {rows * y.strides[-2]};",
                  f"{name}({places['a']} + (ptrdiff_t)tile * {rows * a.strides[-2]}, {a.strides[-2]}, {a.strides[-1]}, "
                  f"{places['b']}, {b.strides[-2]}, {b.strides[-1]}, o, {y.strides[-2]}, {y.strides[-1]}, height, {n}, "
                  f"{depth}, THREAD_SCRATCH);"]
        if node.epilogue:
            at = f"o[i * {y.strides[-2]} + j * {y.strides[-1]}]"
            lines.append(f"for (ptrdiff_t i = 0; i < height; i++) for (ptrdiff_t j = 0; j < {n}; j++) "
                         f"{{ float x = {at}; {' '.join(epilogue_code(node.epilogue, 's_', []))} {at} = x; }}")
        step = finish(node, self.kind, ctx, [(prod(batch) * tiles, "\n".join([*lines, "}"]))])
        macs = prod(y.shape) * depth
        info = StepInfo(node.name, self.kind, node.path, macs=macs, kept_macs=macs, reason="two activations")
        helper = render("matmul.c.j2", name=name, rows=rows, parts=parts)
        return Step(info, step.units, step.body, step.reads, step.writes, {name: helper},
                    thread_floats=depth * parts * ctx.target.vector_floats)
