"""blockpunch itself: compiles an ONNX file for this machine, or loads a ``.bp`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from blockpunch.build import compile as compile_model
from blockpunch.measure.engines.base import Array, Engine, LocalRunner, Shapes
from blockpunch.runtime.session import Session


class BlockpunchRunner(LocalRunner):
    """One session with ``threads`` threads."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        self.version = metadata.version("blockpunch")
        if path.suffix == ".bp":
            self.session = Session(path, threads=threads)
        else:
            self.session = Session(compile_model(path, shape=shapes, threads=threads), threads=threads)

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        return list(self.session.run(inputs).values())

    def close(self) -> None:
        """Close the session."""
        self.session.close()


ENGINE = Engine("blockpunch", "blockpunch", None, BlockpunchRunner, suffixes=(".onnx", ".bp"))
