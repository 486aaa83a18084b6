"""The latency of a layer under one scheme as a curve over rates: what was measured, freed of noise, and between it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

Curve = Mapping[float, float]
"""Rate, rising -> seconds."""


def falling(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The falling sequence that is nearest to ``values``: isotonic regression, by pooling adjacent violators.

    Within one scheme more rate is less work, so a time that rises with the rate is noise, or a schedule that the
    compiler chose badly; a mapper that looks for the best of everything would follow every such outlier downwards.
    Neighbours that rise share their mean, weighted by how often each was measured.
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            mean, heavy, count = pools.pop()
            together = heavy + pool[1]
            pool = ((mean * heavy + pool[0] * pool[1]) / together, together, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]


def between(curve: Curve, rate: float) -> float:
    """Seconds at a rate that was not measured, linear in 1/rate, as work is.

    Beyond the highest rate they stay. Dense layers run in other forms than pruned ones: below the lowest rate that was
    measured the pruned forms' own line counts where it is slower, up to the dense layer's time.
    """
    rates = list(curve)
    at = bisect.bisect_left(rates, rate)
    if at == len(rates):
        return curve[rates[-1]]
    found = _line(curve, rates[at - 1], rates[at], rate)
    if at == 1 and len(rates) > 2:
        found = max(found, min(curve[rates[0]], _line(curve, rates[1], rates[2], rate)))
    return found


def _line(curve: Curve, low: float, high: float, rate: float) -> float:
    """On the line in 1/rate through two rates of the curve."""
    return curve[low] + (curve[high] - curve[low]) * (1 / low - 1 / rate) / (1 / low - 1 / high)


def doubt(curve: Curve, rate: float) -> float:
    """How far :func:`between` may be off at ``rate``, in seconds.

    At most the difference to being linear in log(rate), which a layer that something else than work binds comes nearer
    to; and no more than it is off at the measured rates around, each seen from its own neighbours. Rate 1 is left out
    of that: dense layers run in other forms.
    """
    rates = list(curve)
    at = bisect.bisect_left(rates, rate)
    if at == len(rates):
        return 0.0
    low, high = rates[at - 1], rates[at]
    by_log = curve[low] + (curve[high] - curve[low]) * math.log(rate / low) / math.log(high / low)
    widest = abs(by_log - between(curve, rate))
    inner = [r for r in (low, high) if r not in (rates[0], rates[1], rates[-1])]
    if low == rates[0] or not inner:
        return widest
    return min(widest, max(abs(curve[r] - between({k: v for k, v in curve.items() if k != r}, r)) for r in inner))
