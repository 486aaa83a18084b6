"""The other side of :mod:`~blockpunch.measure.engines.remote`: run as a script by the engine's own interpreter.

``python worker.py SOCKET ENGINE`` serves requests from the inherited socket until it is closed. The package need not
be installed where the engine is: this file finds it beside itself.
"""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any


def find_package() -> None:
    """Make ``blockpunch`` importable without its ``__init__``, which asks for an installed distribution."""
    package = ModuleType("blockpunch")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["blockpunch"] = package


def serve(connection: Connection, engine: str) -> None:
    """Answer requests, plain tuples with the verb first; an answer is ``("ok", value)`` or ``("error", text)``."""
    import numpy as np

    from blockpunch.measure.engines import ENGINES
    from blockpunch.measure.engines.base import Array, Runner

    runner: Runner | None = None
    feed: dict[str, Array] = {}
    while True:
        try:
            verb, *values = connection.recv()
        except EOFError:
            if runner is not None:
                runner.close()
            return
        result: Any = None
        try:
            if verb == "prepare":
                path, threads, shapes = values
                runner = ENGINES[engine].prepare(Path(path), threads, shapes)
                result = runner.version
            else:
                assert runner is not None
                if verb == "feed":
                    feed = {name: np.frombuffer(data, dtype).reshape(shape) for name, shape, dtype, data in values[0]}
                elif verb == "run":
                    result = [(a.shape, a.dtype.str, a.tobytes()) for a in map(np.asarray, runner.run(feed))]
                elif verb == "sample":
                    result = runner.sample(feed, *values)
        except Exception as error:  # whatever an engine raises is told to the process that asked
            connection.send(("error", str(error).strip() or type(error).__name__))
        else:
            connection.send(("ok", result))


def main() -> None:
    """Serve; everything that the engine prints goes to standard error."""
    os.dup2(2, 1)
    # The script's own folder comes first on the path, where its neighbours' names would hide the engines' packages.
    sys.path = [entry for entry in sys.path if not entry or Path(entry).resolve() != Path(__file__).resolve().parent]
    find_package()
    serve(Connection(int(sys.argv[1])), sys.argv[2])


if __name__ == "__main__":
    main()
