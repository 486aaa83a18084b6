"""The cells that are worth a measurement: every regularity of the registry, at several block sizes and rates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from blockpunch.layers import Layer
from blockpunch.schemes import REGULARITIES, Scheme
from blockpunch.schemes.base import Block

DENSE = Scheme("dense")
BLOCKS: tuple[Block, ...] = ((4, 1), (8, 1), (8, 4), (16, 4))
"""Block sizes, filters x channels, of the regularity with blocks that is meant for a kind of layer."""
MEANT_FOR = {"conv": "block-shuffled", "linear": "block"}
"""Kind of layer -> the regularity that is measured with several block sizes; others take their default block."""
OUTDONE = {"block-punched"}
"""Not measured: 'block-shuffled' takes the same time for the same weights kept, and loses less."""
RATES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 24.0)
"""Rates, up to that at which a single group of the scheme is left."""
COARSE = (2.0, 6.0)
"""Measured first, with the highest rate of each scheme; the others where these leave doubt."""
_CORNER = 48
"""Filters and channels of the corner of a weight on which two schemes are compared: it holds three blocks of 16."""


def schemes_for(layer: Layer) -> list[Scheme]:
    """Every scheme that has a form of its own on ``layer``, finest first within a regularity."""
    found = []
    for name, rule in REGULARITIES.items():
        if not rule.prunes or name in OUTDONE or not rule.supports(layer.kind, layer.shape):
            continue
        if rule.default_block is None:
            found.append(Scheme(name))
            continue
        blocks = {*(BLOCKS if MEANT_FOR.get(layer.kind) == name else ()), rule.default_block}
        found += [Scheme(name, (p, q)) for p, q in sorted(blocks) if p <= layer.shape[0] and q <= layer.shape[1]]
    return found


def rates_for(scheme: Scheme, layer: Layer) -> list[float]:
    """The rates at which ``scheme`` can be used on ``layer``: the structured limit of a layer is one group."""
    return [rate for rate in RATES if rate <= _groups(scheme, layer.shape, layer.conv_groups)]


@lru_cache(maxsize=4096)
def _groups(scheme: Scheme, shape: tuple[int, ...], conv_groups: int) -> int:
    return min(int(labels.max()) + 1 for labels in scheme.groupings(shape, conv_groups=conv_groups))


def refines(fine: Scheme, coarse: Scheme, layer: Layer) -> bool:
    """Whether every mask of ``coarse`` is one of ``fine``, so that ``fine`` never loses more at the same rate."""
    return _refines(fine, coarse, (*(min(size, _CORNER) for size in layer.shape[:2]), *layer.shape[2:]))


@lru_cache(maxsize=4096)
def _refines(fine: Scheme, coarse: Scheme, shape: tuple[int, ...]) -> bool:
    groups = fine.groupings(shape)
    if len(groups) != 1 or fine == coarse:
        return False
    if coarse.rule.any_filters and not fine.rule.any_filters and np.isin(groups[0][:1], groups[0][1:]).any():
        return False  # blocks of neighbours cannot follow blocks of any filters
    labels = groups[0].ravel()
    if int(labels.max()) + 1 == labels.size:
        return True
    for other in coarse.groupings(shape):
        first = np.zeros(int(labels.max()) + 1, np.int64)
        first[labels] = other.ravel()
        if not np.array_equal(first[labels], other.ravel()):
            return False
    return coarse.regularity != "pattern" and coarse.prunes
