"""What an engine is to the benchmark: something that prepares a model file, runs it, and samples its own time."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from blockpunch.errors import BenchmarkError, BlockpunchError, DynamicShapeError, MissingExtraError

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]
CLOCKS: dict[str, Callable[[], int]] = {"cpu": time.process_time_ns, "wall": time.perf_counter_ns}
"""Nanoseconds of CPU time of all the process's threads, and of the wall clock."""


class Runner(Protocol):
    """A model made ready in one engine."""

    version: str

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference: arrays by input name -> outputs in the model's order."""
        ...

    def sample(self, inputs: Mapping[str, Array], clock: str, seconds: float) -> list[int]:
        """Nanoseconds of each of the inferences that fit into ``seconds``; ``clock`` is a key of :data:`CLOCKS`."""
        ...

    def close(self) -> None:
        """Give threads and memory back."""
        ...


class LocalRunner:
    """The part that runners in this process have in common."""

    version: str

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        raise NotImplementedError

    def sample(self, inputs: Mapping[str, Array], clock: str, seconds: float) -> list[int]:
        """An unmeasured run to fill the caches, then measured ones until the time is over (one at least)."""
        now, run, times = CLOCKS[clock], self.run, []
        run(inputs)
        end = time.perf_counter() + seconds
        while True:
            start = now()
            run(inputs)
            times.append(now() - start)
            if time.perf_counter() >= end:
                return times

    def close(self) -> None:
        """Nothing to give back, unless a subclass has something."""


@dataclass(frozen=True)
class Engine:
    """A row of the registry: how an engine is called, what brings it, and how it takes a model.

    ``prepare(path, threads, shapes)`` builds a runner; ``suffixes`` are the model files that it reads. An ``isolated``
    engine runs in a process of its own, by this interpreter or by the one that the variable
    ``BLOCKPUNCH_<NAME>_PYTHON`` names: it prints, brings its own threads, or needs packages that do not go with ours.
    """

    name: str
    package: str
    extra: str | None
    prepare: Callable[[Path, int, Shapes | None], Runner]
    suffixes: tuple[str, ...] = (".onnx",)
    isolated: bool = False
    requirement: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that names an isolated engine's interpreter."""
        return f"BLOCKPUNCH_{self.name.upper()}_PYTHON"

    @property
    def interpreter(self) -> str:
        """The Python that runs it."""
        return (os.environ.get(self.variable) if self.isolated else None) or sys.executable

    @property
    def advice(self) -> str:
        """How to get it."""
        if self.extra:
            return f"pip install 'blockpunch[{self.extra}]'"
        return f"set {self.variable} to the python of an environment with {self.requirement or self.package}"

    def version(self) -> str | None:
        """The installed version, or None where the package is missing."""
        if self.interpreter != sys.executable:
            return _version_elsewhere(self.interpreter, self.package)
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def missing(self) -> BlockpunchError:
        """The error for an engine that is not installed."""
        if self.interpreter != sys.executable:
            return BenchmarkError(f"the package '{self.package}' is not there", where=f"{self.variable}="
                                  f"{self.interpreter}", fix="name the python of the environment that has it")
        if self.extra:
            return MissingExtraError(self.package, self.extra, f"measuring {self.name}")
        return BenchmarkError(f"measuring {self.name} needs the package '{self.package}'", fix=self.advice)


@cache
def _version_elsewhere(interpreter: str, package: str) -> str | None:
    """The version of a package that another interpreter has; None also where there is no such interpreter."""
    code = "import sys; from importlib import metadata; print(metadata.version(sys.argv[1]))"
    try:
        done = subprocess.run([interpreter, "-c", code, package], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def require(module: str, package: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(package, extra, purpose) from None


def static_shape(name: str, shape: Sequence[Any], given: Shapes | None) -> tuple[int, ...]:
    """The shape of an input with every dimension a number: the model's own, else the one ``given``.

    Raises:
        DynamicShapeError: a dimension that nobody fixed.
    """
    if given and name in given:
        return tuple(given[name])
    if not all(isinstance(size, int) and size > 0 for size in shape):
        sizes = ",".join(str(size) if isinstance(size, int) else "N" for size in shape)
        raise DynamicShapeError(f"the input '{name}' has the shape {list(shape)}, which is not all numbers",
                                fix=f"--shape {name}={sizes} with numbers")
    return tuple(int(size) for size in shape)


def random_inputs(shapes: Shapes, seed: int = 0) -> dict[str, Array]:
    """Normally distributed float32 arrays, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def guarded(engine: str, path: Path, action: Callable[[], Any]) -> Any:
    """Run an engine's own loading code, whose exceptions are of any type, and report its failure as ours."""
    try:
        return action()
    except (BlockpunchError, KeyboardInterrupt):
        raise
    except Exception as error:  # engines raise plain RuntimeError and their own types alike
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BenchmarkError(f"{engine} cannot load the model: {first}", where=str(path)) from error
