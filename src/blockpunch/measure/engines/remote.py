"""An engine in a process of its own, perhaps of another Python environment, that times itself.

The worker counts its own CPU time around each inference, exactly as runners in this process do; what it takes to ask
for a slice is outside the measurement. It inherits the cores that this process is held to.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

from blockpunch.errors import BenchmarkError
from blockpunch.measure.engines import worker
from blockpunch.measure.engines.base import Array, Engine, Shapes

_PATIENCE_S = 900.0
"""Converting a large model may take minutes; longer than this the worker hangs."""


class RemoteRunner:
    """A worker that has ``path`` ready for ``threads`` threads.

    Raises:
        BenchmarkError: the engine cannot load the model, or its process died.
    """

    def __init__(self, engine: Engine, path: Path, threads: int, shapes: Shapes | None) -> None:
        self._engine, self._path = engine, path
        self._sent: Mapping[str, Array] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the runner
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: an interrupt reaches us alone, and we close the socket, which ends the worker.
            self._process = subprocess.Popen(
                [engine.interpreter, str(worker.__file__), str(theirs.fileno()), engine.name],
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=[theirs.fileno()],
                start_new_session=True)
        self._connection = Connection(ours.detach())
        try:
            given = {name: tuple(shape) for name, shape in shapes.items()} if shapes else None
            self.version = str(self._ask("prepare", str(path.resolve()), threads, given))
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """One inference."""
        self._feed(inputs)
        return [np.frombuffer(data, dtype).reshape(shape) for shape, dtype, data in self._ask("run")]

    def sample(self, inputs: Mapping[str, Array], clock: str, seconds: float) -> list[int]:
        """A slice of inferences, timed by the worker."""
        self._feed(inputs)
        return cast(list[int], self._ask("sample", clock, seconds))

    def close(self) -> None:
        """End the worker."""
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _feed(self, inputs: Mapping[str, Array]) -> None:
        if inputs is not self._sent:
            self._ask("feed", [(name, a.shape, a.dtype.str, a.tobytes()) for name, a in inputs.items()])
            self._sent = inputs

    def _ask(self, *request: Any) -> Any:
        try:
            self._connection.send(request)
            if not self._connection.poll(_PATIENCE_S):
                raise BenchmarkError(f"{self._engine.name} gave no answer in {_PATIENCE_S:.0f} s",
                                     where=str(self._path))
            status, value = self._connection.recv()
        except (EOFError, OSError):
            raise BenchmarkError(f"the process of {self._engine.name} died: {self._last_words()}",
                                 where=str(self._path)) from None
        if status == "error":
            text, _, fix = str(value).partition("\n  -> ")
            raise BenchmarkError(text.splitlines()[0].removeprefix(f"{self._path.resolve()}: "), where=str(self._path),
                                 fix=fix or None)
        return value

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"
