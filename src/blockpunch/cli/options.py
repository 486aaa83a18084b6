"""Option values as a user types them -> values as the library takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockpunch.atomic import make_folder
from blockpunch.errors import InputError, OutputError

Model = Annotated[Path, typer.Argument(help="An ONNX file (.onnx) or a compiled network (.bp).", show_default=False)]
Shape = Annotated[list[str] | None, typer.Option("--shape", metavar="NAME=N,C,H,W", show_default=False,
                                                 help="Shape of an input whose dimensions are not numbers.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=1, help="Computing threads.")]
Tune = Annotated[float, typer.Option("--tune", metavar="SECONDS", min=0.0,
                                     help="Time to spend on measuring schedules on this machine.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", show_default=False,
                                          help="Write the result as JSON; - for standard output, alone.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)]


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """``["x=1,3,224,224"]`` -> ``{"x": (1, 3, 224, 224)}``; None when nothing was given."""
    if not texts:
        return None
    shapes = {}
    for text in texts:
        name, separator, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not separator or not name or not shape or min(shape) < 1:
            raise InputError(f"'{text}' is not a shape", where="--shape", fix="like --shape input=1,3,224,224")
        shapes[name] = shape
    return shapes


def comma_list(text: str) -> list[str]:
    """``a,b`` -> ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_output(path: Path) -> None:
    """Find out before the work, not after it, that the result cannot be written.

    Raises:
        OutputError: no such folder, or no permission.
    """
    if not path.parent.is_dir():
        raise OutputError("the folder does not exist", where=str(path.parent), fix="make it first")
    if path.is_dir():
        raise OutputError("is a folder", where=str(path), fix="name a file")
    make_folder(path.parent)
