"""blockpunch itself: compiles an ONNX file for this machine, or loads a ``.bp`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import blockpunch
from blockpunch.measure.engines.base import Array, Engine, Shapes


class BlockpunchRunner:
    """One session with ``threads`` threads."""

    def __init__(self, path: Path, threads: int, shapes: Shapes | None) -> None:
        self.version = blockpunch.__version__
        if path.suffix == ".bp":
            self.session = blockpunch.Session(path, threads=threads)
        else:
            artifact = blockpunch.compile(path, shape=dict(shapes) if shapes else None, threads=threads)
            self.session = blockpunch.Session(artifact, threads=threads)

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        result = self.session.run(dict(inputs))
        return list(result.values())

    def close(self) -> None:
        """Close the session."""
        self.session.close()


ENGINE = Engine("blockpunch", "blockpunch", None, BlockpunchRunner, suffixes=(".onnx", ".bp"))
