"""What the compiler produces: C text, one blob of weights, and a record per step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from blockpunch.graph.ir import Array

ALIGN = 64
"""Bytes: every table in the blob and every buffer in the scratch memory starts on a cache line."""


@dataclass(frozen=True)
class StepInfo:
    """One step of the compiled program, for profiles and reports.

    Attributes:
        name: the graph node it computes.
        kind: the kernel family (``conv``, ``depthwise``, ``dot``, ``elementwise``, ...).
        path: module path or ONNX node the work came from.
        macs: multiply-accumulates of the dense layer, channels that left the graph included.
        kept_macs: multiply-accumulates that are left: those of non-zero weights between channels that are computed.
        weight_bytes: bytes of its weights and indices in the blob.
        packing: how the weights are stored and tiled, e.g. ``8 filters x 3 vectors, 384 of 2304 columns``.
        reason: why this packing; for a dense layer, why dense.
        read_bytes: bytes of the values that it reads, each once.
        written_bytes: bytes of its results.
    """

    name: str
    kind: str
    path: str
    macs: int = 0
    kept_macs: int = 0
    weight_bytes: int = 0
    packing: str = ""
    reason: str = ""
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass(frozen=True, order=True)
class Choice:
    """The tunable part of a convolution's schedule.

    Attributes:
        form: ``pixels`` or ``filters``, for what lies along a vector, ``patterns`` or ``winograd``.
        height: P, filters per row block, or whose sums share the cache.
        tile: pixel vectors, or rows of the map, per register tile; pixels along a side of a Winograd tile.
        chunk: pixel vectors, or Winograd tiles, that all row blocks sweep before the next chunk; channels of a slice in
            ``rows``.
        grouped: whether filters with equal column lists were brought side by side.
    """

    form: str
    height: int
    tile: int
    chunk: int
    grouped: bool


@dataclass(frozen=True)
class Options:
    """What a tuner may choose for one layer.

    Attributes:
        key: the layer's shape and the statistics of its zeros; equal keys run alike.
        choices: the best by the model first.
        chosen: the one that was compiled.
        cycles: that the model gives for it.
    """

    key: str
    choices: tuple[Choice, ...]
    chosen: Choice
    cycles: float


@dataclass(frozen=True)
class Program:
    """A compiled network before the C compiler: freestanding C that exports the ABI of ``bp_model.h``.

    Attributes:
        name: the network's name.
        source: file name -> C text.
        weights: the blob every step's tables are in; its start must be 64-byte aligned at run time.
        scratch_bytes: memory for all activations.
        thread_scratch_bytes: memory behind it for each thread.
        inputs: (name, shape) of each input; contiguous float32.
        outputs: (name, shape) of each output; contiguous float32.
        steps: one record per step, in order of execution.
        options: node name -> what a tuner may choose there.
    """

    name: str
    source: dict[str, str]
    weights: bytes
    scratch_bytes: int
    thread_scratch_bytes: int
    inputs: list[tuple[str, tuple[int, ...]]]
    outputs: list[tuple[str, tuple[int, ...]]]
    steps: list[StepInfo]
    options: dict[str, Options] = field(default_factory=dict)


@dataclass
class Blob:
    """Collects weight tables into one block of bytes; equal tables are stored once."""

    size: int = 0
    _parts: list[tuple[int, bytes]] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)

    def add(self, array: Array | npt.NDArray[np.generic]) -> int:
        """Store ``array`` (C order) and return its offset in bytes."""
        data = np.ascontiguousarray(array).tobytes()
        key = data if len(data) <= 4096 else None  # only small tables (masks, offsets) repeat
        if key is not None and key in self._known:
            return self._known[key]
        offset = self.size
        self._parts.append((offset, data))
        self.size = -(-(offset + len(data)) // ALIGN) * ALIGN
        if key is not None:
            self._known[key] = offset
        return offset

    def tobytes(self) -> bytes:
        """The whole blob."""
        out = bytearray(self.size)
        for offset, data in self._parts:
            out[offset:offset + len(data)] = data
        return bytes(out)
