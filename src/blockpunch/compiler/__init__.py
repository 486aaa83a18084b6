"""The compiler: from a graph to C for one core, reading the zeros that are in the weights.

shrink (dead channels) -> batch (image by image) -> legalise (strides into phases) -> merge (sums of convolutions) ->
kernels (who computes what) -> layout (planes, views) -> lower (packing, schedule, C) -> memory plan -> emit. Nothing
here needs a plan or masks: any model with zeros will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from blockpunch.compiler.batch import Part, parts_of
from blockpunch.compiler.emit import HANDED_ON, LoweredPart, Tables, emit
from blockpunch.compiler.kernels import Context, Step, kernels_for
from blockpunch.compiler.legalise import legalise
from blockpunch.compiler.memory import plan
from blockpunch.compiler.merge import merge_sums
from blockpunch.compiler.program import ALIGN, Blob, Choice, Options, Program, StepInfo
from blockpunch.compiler.schedule import Schedules
from blockpunch.compiler.sides import lay_out
from blockpunch.graph.ir import Graph, Node
from blockpunch.graph.passes.shrink import REMOVED_MACS, shrink
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
    blob = Blob()
    parts = [_lower(part, at, target, blob, threads_hint, choices or {})
             for at, part in enumerate(parts_of(shrink(graph)))]
    weights = blob.tobytes()
    steps = [step for part in parts for step in part.steps]
    thread_bytes = -(-max((step.thread_floats for step in steps), default=0) * 4 // ALIGN) * ALIGN
    handed_on, floats = _handed_on(graph, parts)
    places = {name: at for part in parts for name, at in part.places.items()} | handed_on
    inputs, outputs = ([(name, graph.shape(name)) for name in names] for names in (graph.inputs, graph.outputs))
    tables = Tables(places, len(weights), floats * 4, thread_bytes, MAX_THREADS)
    source = emit(graph.name, target, parts, inputs, outputs, tables)
    return Program(graph.name, {"model.c": source}, weights, floats * 4, thread_bytes, inputs, outputs,
                   [step.info for step in steps], {name: o for part in parts for name, o in part.options.items()})


def _lower(part: Part, index: int, target: Target, blob: Blob, threads: int,
           choices: Mapping[str, Choice]) -> LoweredPart:
    """Compile one part; its weights go into ``blob``."""
    graph = part.graph
    legal = merge_sums(legalise(graph))
    pairs = kernels_for(legal)
    schedules = Schedules()
    layout = lay_out(pairs, legal, target, threads, schedules)
    ctx = Context(legal, target, layout, blob, threads, choices, schedules, part=index)
    lowered = [_recorded(kernel.lower(node, ctx), node, legal, part.repeat) for node, kernel in pairs]
    steps: list[Step] = [step for step in lowered if step is not None and step.units]
    outside = {*legal.inputs, *legal.outputs}
    places, floats = plan(steps, {root: size for root, size in layout.buffers.items() if root not in outside})
    return LoweredPart(part.repeat, steps, {ctx.buffer(root): at for root, at in places.items()}, floats,
                       [(name, graph.values[name].size) for name in graph.inputs],
                       [(name, graph.values[name].size) for name in graph.outputs], ctx.options)


def _handed_on(graph: Graph, parts: Sequence[LoweredPart]) -> tuple[dict[str, int], int]:
    """(place of each value that one part leaves for the next, floats of all scratch memory)."""
    places: dict[str, int] = {}
    floats = max(part.floats for part in parts)
    for part in parts[1:]:
        for name, size in part.inputs:
            if name not in graph.inputs:
                places[HANDED_ON + str(len(places))] = floats
                floats += -(-size // (ALIGN // 4)) * (ALIGN // 4)
    return places, floats


def _recorded(step: Step | None, node: Node, graph: Graph, repeat: int) -> Step | None:
    """The step, its record completed for ``repeat`` images: what left the layer, the bytes that it reads and writes."""
    def size(names: Sequence[str]) -> int:
        return 4 * repeat * sum(graph.values[name].size for name in dict.fromkeys(names) if name in graph.values)

    if step is None:
        return None
    info = replace(step.info, macs=repeat * step.info.macs + node.attrs.get(REMOVED_MACS, 0),
                   kept_macs=repeat * step.info.kept_macs,
                   read_bytes=size(node.inputs), written_bytes=size(node.outputs))
    return replace(step, info=info)
