"""What a mapping is to reach."""

from __future__ import annotations

from dataclasses import dataclass

from blockpunch.errors import PlanError


@dataclass(frozen=True)
class Goal:
    """A latency, as milliseconds or as a multiple of the dense network's speed; exactly one of both.

    Raises:
        PlanError: both or none, or a number that makes no sense.
    """

    speedup: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        if (self.speedup is None) == (self.latency_ms is None):
            raise PlanError("one goal is needed", fix="give a speed-up (--speedup 3) or a latency (--latency-ms 5)")
        if not (self.speedup or self.latency_ms or 0) > 0:
            raise PlanError(f"{self} is no goal", fix="give a number above 0")

    def seconds(self, dense: float) -> float:
        """The budget, where the dense network takes ``dense`` seconds."""
        if self.speedup is not None:
            return dense / self.speedup
        assert self.latency_ms is not None
        return self.latency_ms / 1e3

    def __str__(self) -> str:
        return f"{self.speedup:g} x" if self.speedup is not None else f"{self.latency_ms:g} ms"


def unreachable(goal: Goal, least: float, dense: float, where: str) -> PlanError:
    """The error that names the best point there is, in seconds."""
    most = int(100 * dense / least) / 100
    return PlanError(f"{goal} cannot be reached: {least * 1e3:.3g} ms is the least, {most:g} times the speed of the "
                     f"dense network ({dense * 1e3:.3g} ms)", where=where, fix=f"ask for at most --speedup {most:g}")
