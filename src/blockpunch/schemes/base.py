"""What every pruning regularity has in common: a weight seen as filters x channels x kernel positions, and its groups.

A regularity is a *grouping* of weights: groups live or die together. Scores, masks and checks all come from the
labels that :meth:`Regularity.groupings` returns. Most regularities are one partition of the weight; ``block`` is two at
once (rows and columns of a block: a weight lives when both its groups do); ``pattern`` adds a rule of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from blockpunch.errors import SchemeError

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Block = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """A weight seen as ``[filters, channels, positions]``; a linear layer ``[out, in]`` is a 1x1 convolution.

    ``channels`` are those that one filter reads (``C / conv_groups``), ``conv_groups`` the convolution's own groups:
    filters of different convolution groups read different channels, so no block of weights may straddle two of them.
    ``order`` has the filters ``[filters]`` as blocks take them, convolution group after convolution group; None: as
    they come.
    """

    shape: tuple[int, ...]
    conv_groups: int = 1
    order: Labels | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.shape) < 2 or min(self.shape) < 1:
            raise SchemeError(f"a weight of shape {list(self.shape)} has no filters and channels",
                              fix="schemes apply to weights [filters, channels, ...] of convolutions and linear layers")
        if self.conv_groups < 1 or self.filters % self.conv_groups:
            raise SchemeError(f"{self.filters} filters cannot be split into {self.conv_groups} convolution groups")

    @property
    def filters(self) -> int:
        """Output channels."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """Input channels that one filter reads."""
        return self.shape[1]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size, ``()`` for a linear layer."""
        return self.shape[2:]

    @property
    def positions(self) -> int:
        """Weights of one kernel."""
        return math.prod(self.kernel)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def view(self) -> tuple[int, int, int]:
        """The shape every regularity works in: ``(filters, channels, positions)``."""
        return self.filters, self.channels, self.positions

    def filter_blocks(self, height: int) -> Labels:
        """Block row of each filter ``[filters]``: ``height`` filters a block, counted anew in each convolution group.

        Where ``height`` does not divide the filters of a group, the group's last block is smaller (a padded edge).
        """
        per_group = self.filters // self.conv_groups
        blocks_per_group = -(-per_group // height)
        index = np.arange(self.filters, dtype=np.int64)
        blocks = index // per_group * blocks_per_group + index % per_group // height
        if self.order is None:
            return blocks
        ordered = np.empty_like(blocks)
        ordered[self.order] = blocks
        return ordered


class Regularity(ABC):
    """One way of removing weights together. Subclasses are stateless; the registry holds one instance of each."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for tables and help: what is removed together."""
    default_block: ClassVar[Block | None] = None
    """Block size where the user gives none; ``None`` where the regularity has no blocks."""
    prunes: ClassVar[bool] = True
    """False for ``dense``, whose only rate is 1."""
    any_filters: ClassVar[bool] = False
    """Whether a block may take any filters of the layer; else it takes neighbours."""

    @abstractmethod
    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """Partitions of the weight: arrays of ``layout.view`` shape with labels ``0 .. n_groups-1``.

        A weight lives when its group in *every* partition lives. No partition means that nothing is ever removed.
        """

    def penalty_groupings(self, weight: Floats, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """The partitions whose groups regularisation shrinks: :meth:`groupings`, unless ``weight`` itself decides more.

        ``weight`` has ``layout.view`` shape.
        """
        return self.groupings(layout, block)

    def filter_order(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Labels | None:
        """The order of the filters that suits ``weight`` where ``keep`` weights stay; None: blocks take neighbours."""
        return None

    def project(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Mask:
        """The mask of ``layout.view`` shape that keeps about ``keep`` weights, the largest groups first.

        The default serves every regularity that is one partition: groups are ranked by mean square, so that the smaller
        groups at an edge are neither favoured nor hurt, and kept from the top until the count is nearest to ``keep``.
        """
        (labels,) = self.groupings(layout, block)
        alive = keep_largest(mean_squares(weight, labels), group_sizes(labels), keep)
        return alive[labels]

    def violation(self, mask: Mask, layout: Layout, block: Block) -> str | None:
        """Why ``mask`` (of ``layout.view`` shape) is not of this regularity, or ``None`` where it is."""
        expected = np.ones(layout.view, dtype=np.bool_)
        for labels in self.groupings(layout, block):
            alive = np.zeros(int(labels.max()) + 1, dtype=np.bool_)
            alive[labels[mask]] = True
            expected &= alive[labels]
        if np.array_equal(mask, expected):
            return None
        where = tuple(int(index) for index in np.argwhere(mask != expected)[0])
        return f"the group of weight (filter, channel, position) = {where} is only partly removed"

    def supports(self, kind: str, shape: tuple[int, ...]) -> bool:
        """Whether the regularity has its own form on a layer of ``kind`` ('conv' or 'linear') and weight ``shape``.

        Never a refusal: elsewhere the regularity falls back on what its module's docstring says.
        """
        return kind in ("conv", "linear") and len(shape) >= 2


def group_sizes(labels: Labels) -> Labels:
    """Weights in each group ``[n_groups]``."""
    return np.bincount(labels.ravel()).astype(np.int64)


def mean_squares(weight: Floats, labels: Labels) -> Floats:
    """Mean of the squared weights of each group ``[n_groups]``: the score that one-shot pruning ranks groups by."""
    sums = np.bincount(labels.ravel(), weights=np.square(weight, dtype=np.float64).ravel())
    return np.asarray(sums / group_sizes(labels), dtype=np.float64)


def nearest_prefix(sizes: Labels, keep: int) -> int:
    """How many leading items of ``sizes`` sum nearest to ``keep``: at least one; of two equally near, the longer."""
    total = np.cumsum(sizes)
    first_over = int(np.searchsorted(total, keep))
    if first_over == 0:
        return 1
    if first_over == len(total):
        return len(total)
    over, under = int(total[first_over]) - keep, keep - int(total[first_over - 1])
    return first_over + 1 if over <= under else first_over


def keep_largest(scores: Floats, sizes: Labels, keep: int) -> Mask:
    """Which groups live ``[n_groups]``: best scores first, until the weights kept are nearest to ``keep``.

    Equal scores are taken in the order of the groups, so that the result never depends on the platform's sort. Where
    all groups are of one size their number is known, and no sort is needed.
    """
    if (sizes == sizes[0]).all():
        count = nearest_prefix(sizes, keep)
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        alive = np.asarray(scores > least, dtype=np.bool_)
        equal = (scores == least).nonzero()[0]
        alive[equal[: count - int(np.count_nonzero(alive))]] = True
        return alive
    order = np.argsort(-scores, kind="stable")
    alive = np.zeros(len(scores), dtype=np.bool_)
    alive[order[: nearest_prefix(sizes[order], keep)]] = True
    return alive
