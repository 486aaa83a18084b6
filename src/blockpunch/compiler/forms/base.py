"""What a form is: one way to compute a convolution on planar maps, with its own packing, cost model and kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.kernels.base import Context
from blockpunch.compiler.layout import View, flat_pixels
from blockpunch.compiler.packing import Floats
from blockpunch.compiler.program import Choice
from blockpunch.graph.ir import Node
from blockpunch.target import Target

FMA_PER_CYCLE, FMA_LATENCY = 2.0, 4.0
BROADCAST_CYCLES = 0.5
TILE_CYCLES = 14.0
"""To enter and leave one register tile."""
_SHARED_BYTES = 8.0  # in a cycle, of what several cores load, or one has just written for another
_NOT_HIDDEN = 0.25  # of the cycles of multiply-adds or loads, whichever are fewer


@dataclass(frozen=True)
class Layer:
    """A convolution that is being lowered.

    Attributes:
        node: the legalised node; ``attrs["taps"]`` are its (phase, dy, dx).
        weights: [filters, columns], a column being one (channel of x, tap); with zeros, if it has any.
        x, y: where input (phases as channels) and result live; their rows are equally far apart.
        target: the core.
        threads: threads that will usually share the layer.
    """

    node: Node
    weights: Floats
    x: View
    y: View
    target: Target
    threads: int

    @cached_property
    def pixels(self) -> int:
        """Pixels of one output plane, margins between its rows included."""
        assert self.x.plane and self.y.plane
        return flat_pixels([self.x.plane, self.y.plane], self.rows, self.width)

    @cached_property
    def vectors(self) -> int:
        """Pixel vectors that cover one output plane."""
        return -(-self.pixels // self.target.vector_floats)

    @cached_property
    def shifts(self) -> tuple[int, ...]:
        """The taps' distances along a row if they reach beyond the sides of an input without margins; else empty."""
        plane, dxs = self.x.plane, sorted({dx for _, _, dx in self.node.attrs["taps"]})
        assert plane
        beyond = max(-dxs[0], self.width + dxs[-1] - plane.w)
        return tuple(dxs) if beyond > plane.row - plane.w else ()

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return self.y.shape[2]

    @property
    def width(self) -> int:
        """Pixels in a row of the result."""
        return self.y.shape[3]

    @property
    def channels(self) -> int:
        """Input channels; every phase of a strided input counts."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Schedule:
    """How one convolution could run.

    Attributes:
        choice: the form, and its block height, tile and chunk.
        order: the filters in the order of the rows.
        cycles: modelled cycles of the layer.
    """

    choice: Choice
    order: npt.NDArray[np.intp]
    cycles: float


@dataclass(frozen=True)
class Emitted:
    """A lowered convolution.

    Attributes:
        parts: (units of work, C statements); a range of the step's units is the same share of every part.
        helpers: C functions by name.
        stored: weights stored, zeros that fill blocks included.
        weight_bytes: bytes of weights and indices.
        thread_floats: memory that each thread needs for itself.
        grain: units that share what the first of a range prepares, as in :class:`Step`.
    """

    parts: list[tuple[int, str]]
    helpers: dict[str, str]
    stored: int
    weight_bytes: int
    thread_floats: int = 0
    grain: int = 1


class Form(ABC):
    """One way to compute a convolution. To add one: a file here, and a row in ``FORMS``."""

    name: ClassVar[str]
    tile_unit: ClassVar[str]
    """What :attr:`Choice.tile` counts, in words."""
    needs_sides: ClassVar[bool] = True
    """Whether it reads zeros beyond the sides of a map; else it takes maps without such margins, too."""

    @abstractmethod
    def schedules(self, layer: Layer) -> list[Schedule]:
        """Every schedule of this form worth comparing; empty where the form does not apply."""

    @abstractmethod
    def emit(self, layer: Layer, schedule: Schedule, ctx: Context) -> Emitted:
        """Pack the weights and write the code for one of :meth:`schedules`."""


def column_cycles(fmas: float, loads: float, latency: float) -> float:
    """Cycles of one column of a tile, by the cycles that its multiply-adds, its loads and their latency take alone."""
    return max(fmas, loads, latency) + _NOT_HIDDEN * min(fmas, loads)


def counts_for(threads: int, counts: set[int], most: int) -> set[int]:
    """Numbers of chunks, such that several threads have equally many of them, as far as there are ``most``."""
    return {min(-(-count // threads) * threads, most) for count in counts}


def shared_cycles(layer: Layer, chunks: int, weight_bytes: float, input_bytes: float) -> float:
    """Cycles of all threads for what each loads besides its share.

    Threads with chunks of the map of their own all load every weight, threads with filters of their own all inputs.
    """
    return (layer.threads - 1) * (weight_bytes if chunks > 1 else input_bytes) / _SHARED_BYTES


def line_cycles(slab_bytes: float, target: Target) -> float:
    """Cycles to load one input vector, by where the values live that are read again and again."""
    split = 1.35  # a vector of a shifted row lies on two cache lines more often than not
    if slab_bytes <= 0.75 * target.l1_bytes:
        return 1.0 * split
    if slab_bytes <= 0.25 * target.l2_bytes:
        return 1.2 * split
    return (1.8 if slab_bytes <= 0.75 * target.l2_bytes else 2.4) * split


def stream_bytes(working_set: float, target: Target) -> float:
    """Bytes of weights per cycle when they are streamed once more."""
    return 48.0 if working_set <= 0.75 * target.l2_bytes else 24.0
