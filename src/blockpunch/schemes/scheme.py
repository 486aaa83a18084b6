"""A scheme: a regularity and, where it has blocks, a block size. The face of this package."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.errors import SchemeError
from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask, Regularity
from blockpunch.schemes.registry import REGULARITIES


@dataclass(frozen=True)
class Scheme:
    """A pruning regularity with its block size ``(filters, channels)``, written ``block-punched:8x4`` or ``filter``.

    A regularity with blocks takes its default block where none is given. ``weight`` and ``mask`` arrays are
    ``[filters, channels / conv_groups, kh, kw]`` or ``[out, in]``; ``conv_groups`` is the convolution's own ``groups``.

    Raises:
        SchemeError: unknown regularity, a block that is not two positive numbers, a block where there are none.
    """

    regularity: str
    block: Block | None = None

    def __post_init__(self) -> None:
        known = REGULARITIES.get(self.regularity)
        if known is None:
            near = difflib.get_close_matches(self.regularity, REGULARITIES, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise SchemeError(f"unknown regularity '{self.regularity}'{hint}",
                              fix=f"choose one of {', '.join(REGULARITIES)}")
        if known.default_block is None and self.block is not None:
            raise SchemeError(f"'{self.regularity}' has no blocks", fix=f"leave out the block size {self.block}")
        if known.default_block is not None:
            object.__setattr__(self, "block", _checked_block(known.default_block if self.block is None else self.block))

    @classmethod
    def parse(cls, text: str, block: str | Block | None = None) -> Scheme:
        """``"filter"``, ``"block-punched:8x4"``, or the regularity and the block apart, as a command line gives them.

        Raises:
            SchemeError: the text is not a scheme, or names a block twice.
        """
        name, colon, size = text.strip().partition(":")
        if colon and block is not None:
            raise SchemeError(f"'{text}' already names a block size", fix="give the block size once")
        if colon:
            block = size
        return cls(name, parse_block(block) if isinstance(block, str) else block)

    def __str__(self) -> str:
        return f"{self.regularity}:{self.block[0]}x{self.block[1]}" if self.block else self.regularity

    @property
    def rule(self) -> Regularity:
        """The regularity's row of the registry."""
        return REGULARITIES[self.regularity]

    @property
    def prunes(self) -> bool:
        """False for ``dense``."""
        return self.rule.prunes

    def groupings(self, shape: tuple[int, ...], *, conv_groups: int = 1) -> tuple[Labels, ...]:
        """Label arrays of the weight's ``shape``: weights of equal label live or die together.

        A weight lives when its group lives in each of them; ``dense`` has none.
        """
        layout = Layout(tuple(shape), conv_groups)
        return tuple(labels.reshape(layout.shape) for labels in self.rule.groupings(layout, self._block))

    def penalty_groupings(self, weight: npt.NDArray[Any], *, conv_groups: int = 1) -> tuple[Labels, ...]:
        """Label arrays of the weight's shape: the groups that regularisation drives to zero, given the weight as it is.

        They are :meth:`groupings`, but for 'pattern', where the weight decides which four of nine are a group.
        """
        layout = Layout(tuple(weight.shape), conv_groups)
        view = np.asarray(weight, dtype=np.float64).reshape(layout.view)
        return tuple(labels.reshape(layout.shape) for labels in self.rule.penalty_groupings(view, layout, self._block))

    def filter_order(self, weight: npt.NDArray[Any], rate: float, *, conv_groups: int = 1) -> Labels | None:
        """The filters ``[filters]`` as blocks take them at ``rate``, where the weight decides that; None elsewhere.

        Give it to :meth:`mask` where many masks of nearly the same weight are wanted.

        Raises:
            SchemeError: as :meth:`mask`.
        """
        check_rate(self, rate)
        layout, view = _seen(weight, conv_groups)
        return self.rule.filter_order(view, _kept(layout, rate), layout, self._block)

    def mask(self, weight: npt.NDArray[Any], rate: float, *, conv_groups: int = 1,
             order: Labels | None = None) -> Mask:
        """Which weights stay at compression ``rate`` (weights before / weights kept), of the weight's shape.

        Keeps ``round(n / rate)`` weights, or as near to that as whole groups come; never less than one group. The
        largest groups by mean square stay. ``order`` is from :meth:`filter_order`; None: the weight decides.

        Raises:
            SchemeError: rate below 1 or not a number, rate other than 1 for ``dense``, weights not finite.
        """
        check_rate(self, rate)
        layout, view = _seen(weight, conv_groups, order)
        keep = _kept(layout, rate)
        if keep >= layout.size:
            return np.ones(layout.shape, dtype=np.bool_)
        return self.rule.project(view, keep, layout, self._block).reshape(layout.shape)

    def check(self, mask: npt.NDArray[Any], *, conv_groups: int = 1, where: str | None = None) -> None:
        """Nothing where ``mask`` (or the non-zeros of an array) obeys the scheme.

        Raises:
            SchemeError: it does not; says which group is broken.
        """
        layout = Layout(tuple(mask.shape), conv_groups)
        fault = self.rule.violation(np.asarray(mask, dtype=np.bool_).reshape(layout.view), layout, self._block)
        if fault is not None:
            raise SchemeError(f"the mask is not {self}: {fault}", where=where)

    def supports(self, kind: str, shape: tuple[int, ...]) -> bool:
        """Whether the regularity has its own form on such a layer; elsewhere its documented fallback acts."""
        return self.rule.supports(kind, tuple(shape))

    @property
    def _block(self) -> Block:
        return self.block or (1, 1)


def _seen(weight: npt.NDArray[Any], conv_groups: int, order: Labels | None = None) -> tuple[Layout, Floats]:
    """The layout, and the weight in its view, scaled so that no square of a tiny or huge weight leaves float64.

    Raises:
        SchemeError: weights not finite.
    """
    layout = Layout(tuple(weight.shape), conv_groups, order)
    if not np.isfinite(weight).all():
        raise SchemeError("some weights are NaN or infinite", fix="repair the model; such weights cannot be ranked")
    view = np.asarray(weight, dtype=np.float64).reshape(layout.view)
    largest = float(np.max(np.abs(view), initial=0.0))
    return layout, view / largest if largest > 0 else view


def _kept(layout: Layout, rate: float) -> int:
    """Weights that stay at ``rate``."""
    return max(1, math.floor(layout.size / rate + 0.5))


def parse_block(text: str) -> Block:
    """``"8x4"`` -> ``(8, 4)``.

    Raises:
        SchemeError: not two positive numbers.
    """
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if match is None:
        raise SchemeError(f"'{text}' is not a block size", fix="write filters x channels, for example 8x4")
    return _checked_block((int(match[1]), int(match[2])))


def check_rate(scheme: Scheme, rate: float) -> None:
    """Nothing where ``rate`` is possible for ``scheme``.

    Raises:
        SchemeError: below 1, not a finite number, or not 1 for ``dense``.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 1:
        raise SchemeError(f"impossible compression rate {rate!r}",
                          fix="a rate is weights before / weights kept: 1 keeps all, 6 keeps one in six")
    if not scheme.prunes and rate != 1:
        raise SchemeError(f"'{scheme}' keeps every weight, so its rate is 1, not {rate:g}",
                          fix="choose another regularity, or rate 1")


def _checked_block(block: Block) -> Block:
    sizes = tuple(block)
    if len(sizes) != 2 or not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
        raise SchemeError(f"impossible block size {block!r}", fix="two whole numbers of at least 1, for example (8, 4)")
    return int(sizes[0]), int(sizes[1])
