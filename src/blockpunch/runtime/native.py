"""A compiled network's shared library, loaded into this process (the C side is ``runtime/c/blockpunch.h``)."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blockpunch.errors import ArtifactError

Array = npt.NDArray[np.float32]

ABI = 3
_NO_MEMORY = 2


class _Tensor(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("rank", ctypes.c_int), ("shape", ctypes.c_int64 * 8))


class _Model(ctypes.Structure):
    _fields_ = (("abi", ctypes.c_int), ("name", ctypes.c_char_p), ("n_inputs", ctypes.c_int),
                ("n_outputs", ctypes.c_int), ("inputs", ctypes.POINTER(_Tensor)), ("outputs", ctypes.POINTER(_Tensor)),
                ("weights_bytes", ctypes.c_size_t), ("scratch_bytes", ctypes.c_size_t), ("n_steps", ctypes.c_int),
                ("max_threads", ctypes.c_int), ("thread_scratch_bytes", ctypes.c_size_t))


class NativeNet:
    """An open network: the library, its weights and its threads.

    Args:
        library: bytes of the shared library.
        weights: packed weights; kept alive, and not copied where 64-byte aligned.
        threads: threads to run on, the caller's included.
        where: the artifact's name in error messages.

    Raises:
        ArtifactError: the library cannot be loaded or does not fit its weights.
    """

    def __init__(self, library: bytes, weights: npt.NDArray[np.uint8], threads: int, where: str) -> None:
        self._library = _load(library, where)
        self._handle: int | None = None
        self.weights = weights
        run, profiled = self._library.bp_run, self._library.bp_run_profiled
        run.argtypes = (ctypes.c_void_p,) * 3
        profiled.argtypes = (ctypes.c_void_p,) * 4
        self._library.bp_open.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._library.bp_open.restype = ctypes.c_void_p
        self._library.bp_close.argtypes = self._library.bp_threads.argtypes = (ctypes.c_void_p,)
        self._library.bp_describe.restype = ctypes.POINTER(_Model)
        self._run, self._run_profiled = run, profiled
        try:
            self._open(threads, where)
        except ArtifactError:
            self.close()
            raise

    def _open(self, threads: int, where: str) -> None:
        model = self._library.bp_describe().contents
        if model.abi != ABI or model.weights_bytes != self.weights.size:
            raise ArtifactError("its library does not fit its weights", where=where, fix="compile the network anew")
        self.n_steps = int(model.n_steps)
        self.input_shapes = tuple(tuple(spec.shape[:spec.rank]) for spec in model.inputs[:model.n_inputs])
        self.output_shapes = tuple(tuple(spec.shape[:spec.rank]) for spec in model.outputs[:model.n_outputs])
        self._handle = self._library.bp_open(self.weights.ctypes.data, self.weights.size, threads)
        if not self._handle:
            raise MemoryError(f"{where}: no memory to open the network (scratch: {model.scratch_bytes} bytes)")
        self.threads = int(self._library.bp_threads(self._handle))

    def run(self, inputs: list[Array], outputs: list[Array]) -> None:
        """Run once, from and to contiguous float32 arrays."""
        _check(self._run(self._handle, _pointers(inputs), _pointers(outputs)))

    def run_profiled(self, inputs: list[Array], outputs: list[Array]) -> list[float]:
        """Run once; the seconds of each step."""
        seconds = (ctypes.c_double * max(1, self.n_steps))()
        _check(self._run_profiled(self._handle, _pointers(inputs), _pointers(outputs), seconds))
        return list(seconds)[:self.n_steps]

    def close(self) -> None:
        """Stop the threads, free the memory and unload the library. No run may be going on."""
        if self._handle:
            self._library.bp_close(self._handle)
        self._handle = None
        _ctypes.dlclose(self._library._handle)


def _load(library: bytes, where: str) -> ctypes.CDLL:
    # The file is removed at once: the loader has it mapped, and nobody can change it or needs to clean it up.
    with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
        path = Path(folder) / "net.so"
        try:
            path.write_bytes(library)
            return ctypes.CDLL(os.fspath(path))
        except OSError as error:
            raise ArtifactError(f"its library cannot be loaded: {error}", where=where,
                                fix="if programs may not be run from the temporary folder, set TMPDIR") from error


def _pointers(arrays: list[Array]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


def _check(code: int) -> None:
    if code == _NO_MEMORY:
        raise MemoryError("no memory for the network's scratch")
    if code:
        raise RuntimeError(f"the network's library refused a call (code {code})")
