"""What an engine is to the benchmark: something that prepares a model file and then runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from blockpunch.errors import BenchmarkError, DynamicShapeError, MissingExtraError

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]


class Runner(Protocol):
    """A model made ready in one engine."""

    version: str

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference: arrays by input name -> outputs in the model's order."""
        ...

    def close(self) -> None:
        """Give threads and memory back."""
        ...


@dataclass(frozen=True)
class Engine:
    """A row of the registry: how an engine is called, what brings it, and how it takes a model.

    ``prepare(path, threads, shapes)`` builds a runner; ``suffixes`` are the model files that it reads.
    """

    name: str
    package: str
    extra: str | None
    prepare: Callable[[Path, int, Shapes | None], Runner]
    suffixes: tuple[str, ...] = (".onnx",)

    def version(self) -> str | None:
        """The installed version, or None where the package is missing."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


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
    except (MissingExtraError, KeyboardInterrupt):
        raise
    except Exception as error:  # engines raise plain RuntimeError and their own types alike
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BenchmarkError(f"{engine} cannot load the model: {first}", where=str(path)) from error
