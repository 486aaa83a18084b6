"""From a trained network to an artifact: load, optimise, compile, tune, build."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockpunch.artifact import Artifact
from blockpunch.errors import MissingExtraError
from blockpunch.target import Target


def compile(model: Any, example: Any = None, *, target: Target | str | None = None,
            shape: Mapping[str, tuple[int, ...]] | None = None, threads: int = 1, tune_s: float = 0.0,
            build: bool = True, keep_dir: str | os.PathLike[str] | None = None,
            progress: Callable[[str, float], None] | None = None) -> Artifact:
    """Compile a trained network into native code; zeros in its weights are left out of the work.

    Args:
        model: an ONNX path, ``ModelProto``, ``torch.nn.Module``, exported program or :class:`Graph`.
        example: example input(s), needed for a ``Module``.
        target: the core to build for: a :class:`Target`, its name, or ``None`` for this machine.
        shape: input name to shape, for models whose inputs have open dimensions.
        threads: how many threads it will mostly run on (a hint; any number works).
        tune_s: seconds to spend on measuring schedules on this machine (0: trust the model, and what was measured
            before). What was measured is kept, so that the next compilation of a like network starts from it.
        build: ``False`` writes the C only, for a machine that will build it itself.
        keep_dir: folder to keep the sources and the full build log in.
        progress: called with a line of text and the part done, 0 to 1.

    Raises:
        ModelError: the model cannot be read; the subclasses say why.
        ToolchainError: no C compiler, or it failed.
        TargetError: unknown target, or tuning for a target that this machine cannot run.
    """
    chosen = target if isinstance(target, Target) else Target.named(target or "host")
    try:
        # Late: running a compiled network must not need what compiling one does.
        from blockpunch.compiler import compile_graph, toolchain
        from blockpunch.graph import load_graph
        from blockpunch.graph.passes import optimize
        from blockpunch.tuning import Tuner

        graph = optimize(load_graph(model, example, shape=dict(shape) if shape else None))
        tuner = Tuner(graph, chosen, threads)
        choices = tuner.tune(tune_s, progress) if tune_s > 0 else tuner.known()
        program = compile_graph(graph, chosen, threads_hint=threads, choices=choices)
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "jinja2"):
            raise
        raise MissingExtraError(error.name, "compile", "compiling a network") from error
    runtime = toolchain.runtime_sources()
    made = None
    if build:
        made = toolchain.find_compiler(chosen).build({**program.source, **runtime}, chosen,
                                                     keep_dir=Path(keep_dir) if keep_dir is not None else None)
    return Artifact.from_program(program, chosen, runtime, made)
