"""Pruning regularities, one file each, and :class:`Scheme`. Needs numpy alone."""

from blockpunch.schemes.base import Layout, Regularity
from blockpunch.schemes.registry import REGULARITIES
from blockpunch.schemes.scheme import Scheme, check_rate, parse_block

__all__ = ["REGULARITIES", "Layout", "Regularity", "Scheme", "check_rate", "parse_block"]
