"""The compiler: from a graph to C for one core, reading the zeros that are in the weights.

legalise (strides into phases) -> merge (sums of convolutions) -> kernels (who computes what) -> layout (planes, views)
-> lower (packing, schedule, C) -> memory plan -> emit. Nothing here needs a plan or masks: any model with zeros will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from blockpunch.compiler.emit import Tables, emit
from blockpunch.compiler.kernels import Context, Step, kernels_for
from blockpunch.compiler.layout import Needs, assign
from blockpunch.compiler.legalise import legalise
from blockpunch.compiler.memory import plan
from blockpunch.compiler.merge import merge_sums
from blockpunch.compiler.program import ALIGN, Blob, Choice, Options, Program, StepInfo
from blockpunch.graph.ir import Graph, Node
from blockpunch.target import Target

MAX_THREADS = 64

__all__ = ["Choice", "Options", "Program", "StepInfo", "compile_graph"]


def compile_graph(graph: Graph, target: Target, *, threads_hint: int = 1,
                  choices: Mapping[str, Choice] | None = None) -> Program:
    """Compile an optimised graph to C for ``target``.

    Args:
        graph: after :func:`blockpunch.graph.passes.optimize`; zeros in its weights are left out.
        target: the core to compile for.
        threads_hint: threads that will usually run it; finer work for more threads.
        choices: node name -> schedule, where measurement has decided; the model decides elsewhere.

    Raises:
        UnsupportedOperatorError: lists every node that no kernel takes.
    """
    legal = merge_sums(legalise(graph))
    pairs = kernels_for(legal)
    needs = Needs()
    for node, kernel in pairs:
        kernel.needs(node, legal, needs, target)
    layout = assign(legal, needs, target.vector_floats)
    ctx = Context(legal, target, layout, Blob(), threads_hint, choices or {})
    lowered = [_with_traffic(kernel.lower(node, ctx), node, legal) for node, kernel in pairs]
    steps: list[Step] = [step for step in lowered if step is not None and step.units]
    outside = {*legal.inputs, *legal.outputs}
    places, floats = plan(steps, {root: size for root, size in layout.buffers.items() if root not in outside})
    inputs = [(name, legal.values[name].shape) for name in legal.inputs]
    outputs = [(name, legal.values[legal_name].shape)
               for name, legal_name in zip(graph.outputs, legal.outputs, strict=True)]
    weights = ctx.blob.tobytes()
    thread_bytes = -(-max((step.thread_floats for step in steps), default=0) * 4 // ALIGN) * ALIGN
    tables = Tables({ctx.buffer(root): at for root, at in places.items()}, len(weights), floats * 4, thread_bytes,
                    MAX_THREADS)
    source = emit(graph.name, target, steps, inputs, outputs, tables)
    return Program(graph.name, {"model.c": source}, weights, floats * 4, thread_bytes, inputs, outputs,
                   [s.info for s in steps], ctx.options)


def _with_traffic(step: Step | None, node: Node, graph: Graph) -> Step | None:
    """The step, its record completed by the bytes of the values that it reads and writes."""
    def size(names: Sequence[str]) -> int:
        return 4 * sum(graph.values[name].size for name in dict.fromkeys(names) if name in graph.values)

    if step is None:
        return None
    return replace(step, info=replace(step.info, read_bytes=size(node.inputs), written_bytes=size(node.outputs)))
