"""What a kernel family is: which nodes it takes, what it asks of the layout, and the step it turns a node into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from blockpunch.compiler.expressions import apply, number
from blockpunch.compiler.layout import Layout, Needs, Plane, View
from blockpunch.compiler.packing import Floats
from blockpunch.compiler.program import Blob, Choice, Options, StepInfo
from blockpunch.graph.ir import Array, FusedOp, Graph, Node
from blockpunch.target import Target

if TYPE_CHECKING:
    import jinja2

    from blockpunch.compiler.schedule import Schedules


@dataclass(frozen=True)
class Step:
    """One parallel loop of the program.

    Attributes:
        info: the record for profiles.
        units: number of independent pieces of work; threads take contiguous ranges of them.
        body: C statements; may use ``c`` (the buffers of the run), ``begin`` and ``end`` (its range of units).
        reads, writes: buffers touched.
        helpers: static C functions that the body calls, by name; equal names are the same text.
        thread_floats: memory that each thread needs for itself; ``THREAD_SCRATCH`` is its address.
        grain: so many units, from a multiple of it on, share what the first of a range prepares for all of it.
    """

    info: StepInfo
    units: int
    body: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    helpers: dict[str, str] = field(default_factory=dict)
    thread_floats: int = 0
    grain: int = 1


@dataclass(frozen=True)
class Context:
    """All that a kernel may look at while it lowers a node; ``options`` is where it says what a tuner may choose."""

    graph: Graph
    target: Target
    layout: Layout
    blob: Blob
    threads: int
    choices: Mapping[str, Choice]
    schedules: Schedules
    part: int = 0
    options: dict[str, Options] = field(default_factory=dict)

    def view(self, name: str) -> View:
        """Where a value lives."""
        return self.layout.views[name]

    def pointer(self, view: View) -> str:
        """C expression of the address of the view's first element (not writable for a graph input)."""
        graph = self.graph
        if view.root in graph.inputs:
            base = f"c->inputs[{graph.inputs.index(view.root)}]"
        elif view.root in graph.outputs:
            base = f"c->outputs[{graph.outputs.index(view.root)}]"
        else:
            base = f"(c->scratch + {self.buffer(view.root)})"
        return f"{base} + {view.offset}" if view.offset else base

    def buffer(self, root: str) -> str:
        """Name of the C constant that holds a scratch buffer's offset; the memory planner defines it."""
        return f"BUF{self.part}_{list(self.layout.buffers).index(root)}"

    def table(self, ctype: str, array: Array) -> str:
        """Store a table in the weights and give the C expression of its address."""
        return f"TABLE({ctype}, {self.blob.add(array)})"


class Kernel(ABC):
    """One family of kernels. To add one: a file here, and a row in ``KERNELS``."""

    kind: str

    @abstractmethod
    def accepts(self, node: Node, graph: Graph) -> bool:
        """Whether this family computes ``node`` (of a legalised graph)."""

    def needs(self, node: Node, graph: Graph, needs: Needs, target: Target) -> None:
        """Add what this node asks of the layout. Most families take any layout."""
        return None

    @abstractmethod
    def lower(self, node: Node, ctx: Context) -> Step | None:
        """The step that computes ``node``, or ``None`` when its result is already in place."""


def together(parts: Sequence[tuple[int, str]]) -> tuple[int, str]:
    """Join (units, statements) into one step's: a range of its units is the same share of every part.

    So each thread gets a part of all the work, however unlike the parts are.
    """
    if len(parts) == 1:
        return parts[0]
    most = max((units for units, _ in parts), default=0)
    part = "(int)((int64_t){} * {} / {})"
    blocks = [f"{{\nconst int first = {part.format('begin', units, most)}, last = {part.format('end', units, most)};\n"
              f"{{ const int begin = first, end = last;\n{body}\n}}\n}}" for units, body in parts]
    return most, "\n".join(blocks)


def strides_of(residuals: Sequence[View], **axes: int) -> dict[str, str]:
    """Fields of a layer's struct: the residuals' strides along each named axis (none without residuals)."""
    if not residuals:
        return {}
    return {key: "{" + ", ".join(str(r.strides[axis]) for r in residuals) + "}" for key, axis in axes.items()}


def call(name: str, struct: str, fields: Mapping[str, Any], views: Sequence[View], ctx: Context) -> str:
    """C statements that fill a layer's ``struct`` and call the kernel ``name`` with it on ``views``."""
    layer = ", ".join(f".{k} = {v}" for k, v in fields.items())
    pointers = ", ".join(["&layer", *(ctx.pointer(view) for view in views)])
    return f"const {struct} layer = {{{layer}}};\n{name}({pointers}, begin, end);"


def operands(node: Node) -> list[str]:
    """Names of the values that the epilogue reads, in order of appearance."""
    return [node.inputs[f.operand] for f in node.epilogue if f.operand is not None]


def core_inputs(node: Node) -> tuple[str, ...]:
    """The operator's own inputs, without those of its epilogue."""
    fused = {f.operand for f in node.epilogue if f.operand is not None}
    return tuple(name for i, name in enumerate(node.inputs) if i not in fused)


def epilogue_code(epilogue: Sequence[FusedOp], prefix: str, loads: Sequence[str]) -> list[str]:
    """C statements that apply ``epilogue`` to the variable ``x``; ``loads`` are the operands' expressions in order."""
    left = iter(loads)
    return [f"x = {apply(prefix, f.op, f.attrs, 'x', None if f.operand is None else next(left))};" for f in epilogue]


def epilogue_name(epilogue: Sequence[FusedOp]) -> str:
    """A piece of a C identifier that tells epilogues apart: ``_add_relu``, ``_clip_0_6``."""
    words = []
    for fused in epilogue:
        values = [number(v) if isinstance(v, float) else str(v) for _, v in sorted(fused.attrs.items(), reverse=True)]
        words += [fused.op.lower(), *(v.replace(".", "p").replace("-", "m").rstrip("f") for v in values)]
    return "".join("_" + "".join(ch for ch in w if ch.isalnum() or ch == "_") for w in words)


def pixel_masks(plane: Plane, h: int, vectors: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """One bit per lane: whether it is a pixel of the map or a part of the margin."""
    flat = np.arange(vectors * width)
    pixel = (flat % plane.row < plane.w) & (flat < h * plane.row)
    return (pixel.reshape(vectors, width) @ (1 << np.arange(width))).astype(np.uint16)


def biases(node: Node, ctx: Context, filters: int) -> Floats:
    """The bias of every filter, zeros where the layer has none."""
    core = core_inputs(node)
    if len(core) > 2 and core[2]:
        return np.asarray(ctx.graph.constants[core[2]], np.float32).ravel()
    return np.zeros(filters, np.float32)


def kernel_epilogue(epilogue: Sequence[FusedOp]) -> Callable[[int | str], list[str]]:
    """Epilogue statements for a vector at a distance from the residual pointers ``r0``, ``r1``, ..."""
    count = sum(f.operand is not None for f in epilogue)
    return lambda at: epilogue_code(epilogue, "v_", [f"v_load(r{i} + {at})" for i in range(count)])


@cache
def _templates() -> jinja2.Environment:
    import jinja2  # not needed to run a compiled network

    return jinja2.Environment(loader=jinja2.PackageLoader("blockpunch.compiler", "templates"), trim_blocks=True,
                              lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def render(template: str, **variables: Any) -> str:
    """Fill a C template."""
    return str(_templates().get_template(template).render(**variables))
