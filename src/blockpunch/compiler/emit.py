"""Putting the C together: prelude, kernels, one function per step, the table of tensors, and the run function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockpunch.compiler.kernels import Step
from blockpunch.compiler.kernels.base import render
from blockpunch.compiler.program import Options
from blockpunch.target import Target

Tensors = list[tuple[str, tuple[int, ...]]]
HANDED_ON = "VALUE_"
"""C constants with this prefix are the places of the values that one part leaves for the next, in order."""


@dataclass(frozen=True)
class LoweredPart:
    """The steps of one part of the network.

    Attributes:
        repeat: how often they run, each time on the next slice of inputs and outputs.
        steps: in order of execution.
        places: C constant -> place of each buffer in the scratch memory, in floats.
        floats: of scratch memory.
        inputs, outputs: (name, floats of one slice).
        options: node name -> what a tuner may choose there.
    """

    repeat: int
    steps: list[Step]
    places: dict[str, int]
    floats: int
    inputs: list[tuple[str, int]]
    outputs: list[tuple[str, int]]
    options: dict[str, Options]


@dataclass(frozen=True)
class Tables:
    """Numbers that the emitted file states about itself."""

    buffers: dict[str, int]
    weights_bytes: int
    scratch_bytes: int
    thread_scratch_bytes: int
    threads: int


def emit(name: str, target: Target, parts: Sequence[LoweredPart], inputs: Tensors, outputs: Tensors,
         tables: Tables) -> str:
    """The text of ``model.c``."""
    steps = [step for part in parts for step in part.steps]
    helpers: dict[str, str] = {}
    for step in steps:
        assert all(helpers.get(function, text) == text for function, text in step.helpers.items()), "two of one name"
        helpers |= step.helpers
    return render("prelude.c.j2", name=_comment(name), target=target) + render(
        "model.c.j2", name=name, parts=_runs(parts, [n for n, _ in inputs], [n for n, _ in outputs]), steps=steps,
        helpers=list(helpers.values()), inputs=inputs, outputs=outputs, tables=tables, comment=_comment,
        quote=json.dumps)


def _runs(parts: Sequence[LoweredPart], inputs: list[str], outputs: list[str]) -> list[dict[str, Any]]:
    """What the template needs of each part: its range of steps, and C expressions of its inputs and outputs."""
    handed_on = [name for part in parts[1:] for name, _ in part.inputs if name not in inputs]
    runs, stop = [], 0
    for part in parts:
        left = list(outputs)  # a value that is an output and handed on is written to both places, the output first
        first, stop = stop, stop + len(part.steps)
        ends = []
        for name, floats in part.outputs:
            at = f"outputs[{outputs.index(name)}]" if name in left else f"own + {HANDED_ON}{handed_on.index(name)}"
            if name in left:
                left.remove(name)
            ends.append((at, floats))
        starts = [(f"inputs[{inputs.index(name)}]" if name in inputs else
                   f"own + {HANDED_ON}{handed_on.index(name)}", floats) for name, floats in part.inputs]
        runs.append({"repeat": part.repeat, "first": first, "stop": stop, "inputs": starts, "outputs": ends})
    return runs


def _comment(text: str) -> str:
    """Text that cannot end a C comment."""
    return text.replace("*/", "* /").replace("\\", "/").replace("\n", " ")
