"""The registry: one row per regularity. Adding a file and its row here adds a choice everywhere."""

from __future__ import annotations

from blockpunch.schemes.base import Regularity
from blockpunch.schemes.block import BlockBased
from blockpunch.schemes.block_punched import BlockPunched
from blockpunch.schemes.block_shuffled import BlockShuffled
from blockpunch.schemes.channel import Channel
from blockpunch.schemes.dense import Dense
from blockpunch.schemes.filter import Filter
from blockpunch.schemes.pattern import Pattern
from blockpunch.schemes.unstructured import Unstructured

REGULARITIES: dict[str, Regularity] = {
    regularity.name: regularity
    for regularity in (
        Dense(),
        Unstructured(),
        Filter(),
        Channel(),
        Pattern(),
        BlockBased(),
        BlockPunched(),
        BlockShuffled(),
    )
}
"""Name -> regularity, in the order that tables show them."""
