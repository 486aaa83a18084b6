"""Gradual magnitude pruning: a little more is removed at each of many moments, while the network is trained.

The share of weights that is removed rises along a cubic, fast at first, when there is much to spare, and slowly in the
end (Zhu, Gupta 2017, arXiv 1710.01878), in each layer towards the plan's rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from blockpunch.errors import PlanError, TrainingError
from blockpunch.plan import Layer, LayerPlan, Plan
from blockpunch.pruning.groups import Array
from blockpunch.pruning.method import Target


@dataclass(frozen=True)
class Gradual:
    """Settings of gradual magnitude pruning.

    Args:
        steps: training steps until every layer has the plan's rate; training on after them is the recovery.
        checks: times, evenly spread over the steps, at which more is removed; the last one is the last step.
    """

    steps: int
    checks: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checks < 1:
            raise TrainingError("gradual pruning needs at least one step and one check")

    def takes(self, entry: LayerPlan) -> bool:
        """Layers with a rate above 1 are pruned."""
        return entry.prunes

    def start(self, plan: Plan, layers: Sequence[Layer], targets: Sequence[Target]) -> GradualSchedule:
        """A schedule for one network; see :class:`~blockpunch.pruning.method.Method`."""
        if not targets:
            raise PlanError("the plan prunes no layer", fix="give some layers a scheme and a rate above 1")
        return GradualSchedule(self, targets)


class GradualSchedule:
    """Gradual magnitude pruning at work: see :class:`~blockpunch.pruning.method.Schedule`."""

    def __init__(self, settings: Gradual, targets: Sequence[Target]) -> None:
        self.settings, self.targets, self.count = settings, list(targets), 0

    @property
    def done(self) -> bool:
        """Whether all layers have the plan's rates."""
        return self.count >= self.settings.steps

    def penalty(self) -> torch.Tensor | None:
        """Nothing is added to the loss."""
        return None

    def step(self) -> dict[str, Array] | None:
        """New masks at the checks. Weights that were removed are zero and so the first to be removed again."""
        if self.done:
            return None
        self.count += 1
        every = self.settings.steps / self.settings.checks
        due = self.done or int(self.count / every) > int((self.count - 1) / every)
        return self._masks(self.count / self.settings.steps) if due else None

    def prune(self) -> dict[str, Array]:
        """The final masks, now."""
        self.count = self.settings.steps
        return self._masks(1.0)

    def _masks(self, way: float) -> dict[str, Array]:
        masks = {}
        for target in self.targets:
            final = 1 / target.entry.rate
            kept = final + (1 - final) * (1 - way) ** 3
            masks[target.layer.name] = target.mask(1 / kept)
        return masks

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The steps that are done; all else is in the weights and masks."""
        return {"count": torch.tensor(self.count, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            TrainingError: the state is of another method.
        """
        if set(state) != {"count"}:
            raise TrainingError("the saved state is of another pruning method",
                                fix="use the method that it was made with")
        self.count = int(state["count"])
