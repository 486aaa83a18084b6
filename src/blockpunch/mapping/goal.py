"""What a mapping is to reach."""

from __future__ import annotations

from dataclasses import dataclass

from blockpunch.errors import PlanError


@dataclass(frozen=True)
class Goal:
    """A speed-up over the dense network, a latency, or the accuracy that may be lost; exactly one of the three.

    Attributes:
        speedup: a multiple of the dense network's speed.
        latency_ms: milliseconds.
        max_drop: points of accuracy; the fastest network that loses no more is wanted.

    Raises:
        PlanError: none or several, or a number that makes no sense.
    """

    speedup: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.speedup, self.latency_ms, self.max_drop) if number is not None]
        if len(given) != 1:
            raise PlanError("one goal is needed", fix="give a speed-up (--speedup 3), a latency (--latency-ms 5), or "
                                                      "the points of accuracy that may be lost (--max-drop 0.5)")
        if not given[0] > 0:
            raise PlanError(f"{self} is no goal", fix="give a number above 0")

    def seconds(self, dense: float) -> float:
        """The budget, where the dense network takes ``dense`` seconds.

        Raises:
            PlanError: the goal is an accuracy.
        """
        if self.speedup is not None:
            return dense / self.speedup
        if self.latency_ms is None:
            raise PlanError("this method takes no loss of accuracy as its goal",
                            fix="use the method exact, or give a speed-up or a latency")
        return self.latency_ms / 1e3

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"at most {self.max_drop:g} points lost"
        return f"{self.speedup:g} x" if self.speedup is not None else f"{self.latency_ms:g} ms"


def unreachable(goal: Goal, least: float, dense: float, where: str) -> PlanError:
    """The error that names the best point there is, in seconds."""
    most = int(100 * dense / least) / 100
    return PlanError(f"{goal} cannot be reached: {least * 1e3:.3g} ms is the least, {most:g} times the speed of the "
                     f"dense network ({dense * 1e3:.3g} ms)", where=where, fix=f"ask for at most --speedup {most:g}")
