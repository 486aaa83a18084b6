"""Mapping: which scheme and rate each layer gets, from latencies measured on the device and what the network can bear.

:mod:`~blockpunch.mapping.profile` measures into a :class:`LatencyTable`; :mod:`~blockpunch.mapping.rules` and
:mod:`~blockpunch.mapping.exact` choose from it.
"""

from blockpunch.mapping.goal import Goal
from blockpunch.mapping.network import Item, Network
from blockpunch.mapping.profile import profile
from blockpunch.mapping.table import LatencyTable

__all__ = ["Goal", "Item", "LatencyTable", "Network", "profile"]
