"""Putting the C together: prelude, kernels, one function per step, the table of tensors, and the run function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from blockpunch.compiler.kernels import Step
from blockpunch.compiler.kernels.base import render
from blockpunch.target import Target

Tensors = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Tables:
    """Numbers that the emitted file states about itself."""

    buffers: dict[str, int]
    weights_bytes: int
    scratch_bytes: int
    thread_scratch_bytes: int
    threads: int


def emit(name: str, target: Target, steps: Sequence[Step], inputs: Tensors, outputs: Tensors, tables: Tables) -> str:
    """The text of ``model.c``."""
    helpers: dict[str, str] = {}
    for step in steps:
        helpers |= step.helpers
    return render("prelude.c.j2", name=_comment(name), target=target) + render(
        "model.c.j2", name=name, steps=steps, helpers=list(helpers.values()), inputs=inputs, outputs=outputs,
        tables=tables, comment=_comment, quote=json.dumps)


def _comment(text: str) -> str:
    """Text that cannot end a C comment."""
    return text.replace("*/", "* /").replace("\\", "/").replace("\n", " ")
