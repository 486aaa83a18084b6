"""Session: run a compiled network. Needs numpy alone."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from blockpunch.artifact import Artifact
from blockpunch.errors import ArtifactError, InputError, TargetMismatchError
from blockpunch.manifest import TensorSpec
from blockpunch.runtime.native import NativeNet

Array = npt.NDArray[np.float32]
_BUILD_FIX = "compile the model again on this machine, or with target= for its CPU"


class Session:
    """A compiled network, ready to run.

    Any number of Python threads may call :meth:`run` on one session at once: the interpreter lock is released, every
    call works in its own memory, and the session's threads serve one call at a time (the others run on their own).
    After ``os.fork()`` the child gets threads of its own.

    An artifact holds machine code, which runs with all the rights of this process: open only those that you trust.

    Args:
        source: a ``.bp`` file or an :class:`Artifact`.
        threads: how many threads one run uses, the caller's included.

    Raises:
        ArtifactError: the file is missing, truncated, altered, of a newer version, or has no library.
        TargetMismatchError: it was built for a CPU with features that this one lacks.
        InputError: ``threads`` is below 1.
    """

    def __init__(self, source: str | os.PathLike[str] | Artifact, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"threads is {threads}", fix="give 1 or more")
        artifact = source if isinstance(source, Artifact) else Artifact.load(source)
        self.artifact = artifact
        self.inputs: tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: tuple[TensorSpec, ...] = artifact.outputs
        self._where = str(artifact.path or artifact.name)
        self._asked_threads = threads
        self._busy = threading.Condition()
        self._running = 0
        self._net: NativeNet | None = None
        self._open()

    @property
    def threads(self) -> int:
        """How many threads one run uses (fewer than asked where the system or the network has no use for more)."""
        return self._net.threads if self._net else 0

    @overload
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]: ...

    @overload
    def run(self, inputs: Any) -> Any: ...

    def run(self, inputs: Any) -> Any:
        """Run the network once.

        Args:
            inputs: one array, a list of arrays in the order of :attr:`inputs`, or a dict by name. float32, of exactly
                the shapes of :attr:`inputs`; not copied when C-contiguous.

        Returns:
            For a dict, a dict by output name; else the output array, or a tuple of them if there are several.

        Raises:
            InputError: wrong count, name, shape or dtype; or the session is closed.
        """
        arrays = self._arrays(inputs)
        outputs = self._empty_outputs()
        with _Running(self) as net:
            net.run(arrays, outputs)
        return self._give(inputs, outputs)

    def run_profiled(self, inputs: Any) -> tuple[Any, list[float]]:
        """Like :meth:`run`, and the seconds of each step (as many as ``artifact.layers``)."""
        arrays = self._arrays(inputs)
        outputs = self._empty_outputs()
        with _Running(self) as net:
            seconds = net.run_profiled(arrays, outputs)
        return self._give(inputs, outputs), seconds

    def close(self) -> None:
        """Stop the threads and free the memory, once calls that are running have returned. Closing twice is fine."""
        if self._pid != os.getpid():  # a lock of the parent's may be held for ever, a run of the parent's is not ours
            self._busy, self._running = threading.Condition(), 0
        with self._busy:
            net, self._net = self._net, None
            while self._running:
                self._busy.wait()
        if net is not None:
            self._finalizer()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"threads={self.threads}" if self._net else "closed"
        return f"Session({self._where!r}, {state})"

    def _open(self) -> None:
        artifact = self.artifact
        fits, missing = artifact.target.runs_here()
        if not fits:  # before anything of the library runs: an unknown instruction would kill the process
            raise TargetMismatchError(f"built for '{artifact.target.name}'; this machine lacks {', '.join(missing)}",
                                      where=self._where, fix=_BUILD_FIX)
        if artifact.library is None:
            raise ArtifactError(f"has the C for '{artifact.target.name}' but no library", where=self._where,
                                fix=_BUILD_FIX)
        net = NativeNet(artifact.library, artifact.weights, self._asked_threads, self._where)
        if net.input_shapes != tuple(spec.shape for spec in self.inputs) or \
                net.output_shapes != tuple(spec.shape for spec in self.outputs):
            net.close()
            raise ArtifactError("its library and its manifest are of two networks", where=self._where, fix=_BUILD_FIX)
        self._net, self._pid = net, os.getpid()
        self._finalizer = weakref.finalize(self, net.close)
        self._finalizer.atexit = False  # at exit the system frees it all, and a daemon thread may still be in a run

    def _reopen_in_child(self) -> None:
        """After a fork: the parent's worker threads are not here and its locks may be held for ever. Start afresh."""
        self._finalizer.detach()
        self._busy, self._running = threading.Condition(), 0
        if self._net is not None:
            self._open()
        self._pid = os.getpid()

    def _arrays(self, inputs: Any) -> list[Array]:
        if isinstance(inputs, Mapping):
            names = [spec.name for spec in self.inputs]
            if set(inputs) != set(names):
                raise InputError(f"inputs are named {_quoted(names)}, not {_quoted(inputs)}", where=self._where,
                                 fix="give every input by its name, and no other")
            arrays: Sequence[Any] = [inputs[name] for name in names]
        else:
            arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            if len(arrays) != len(self.inputs):
                raise InputError(f"takes {len(self.inputs)} input(s), got {len(arrays)}", where=self._where,
                                 fix="expected, in order: " + ", ".join(f"{s.name} {s.shape}" for s in self.inputs))
        return [_checked(array, spec) for array, spec in zip(arrays, self.inputs, strict=True)]

    def _empty_outputs(self) -> list[Array]:
        return [np.empty(spec.shape, np.float32) for spec in self.outputs]

    def _give(self, inputs: Any, outputs: list[Array]) -> Any:
        if isinstance(inputs, Mapping):
            return {spec.name: array for spec, array in zip(self.outputs, outputs, strict=True)}
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class _Running:
    """A call that is under way: the network stays open until it has returned."""

    __slots__ = ("_session",)

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> NativeNet:
        session = self._session
        if session._pid != os.getpid():
            session._reopen_in_child()
        with session._busy:
            if session._net is None:
                raise InputError("the session is closed", where=session._where, fix="open a new Session")
            session._running += 1
            return session._net

    def __exit__(self, *_: object) -> None:
        with self._session._busy:
            self._session._running -= 1
            self._session._busy.notify_all()


def _checked(value: Any, spec: TensorSpec) -> Array:
    """``value`` as a contiguous float32 array of the input's shape; other dtypes are refused, not converted."""
    where = f"input '{spec.name}'"
    if not hasattr(value, "__array__"):
        raise InputError(f"is a {type(value).__name__}, not an array", where=where,
                         fix="give a float32 numpy array, a list of them, or a dict by input name")
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise InputError(f"has dtype {array.dtype}, expected float32", where=where, fix="use x.astype(np.float32)")
    if array.shape != spec.shape:
        raise InputError(f"has shape {array.shape}, expected {spec.shape}", where=where,
                         fix="reshape it, or compile the model with shape= for this size")
    return np.ascontiguousarray(array).reshape(spec.shape)  # ascontiguousarray makes a scalar 1-d


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
