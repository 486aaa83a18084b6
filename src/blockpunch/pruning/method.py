"""What a pruning method is: something that decides, while the network is trained, which weights go, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from blockpunch.plan import Layer, LayerPlan, Plan
from blockpunch.pruning.groups import Array


@dataclass(frozen=True)
class Target:
    """A weight that a method may prune: the layer, what the plan says of it, and the parameter."""

    layer: Layer
    entry: LayerPlan
    parameter: nn.Parameter

    def array(self) -> Array:
        """The weight as it is now, on the host."""
        array: Array = self.parameter.detach().float().cpu().numpy()
        return array

    def mask(self, rate: float) -> Array:
        """The largest groups at ``rate``, True stays."""
        return self.entry.scheme.mask(self.array(), rate, conv_groups=self.layer.conv_groups)


class Schedule(Protocol):
    """A method at work on one network: told of each step, it says what to add to the loss and when to prune."""

    @property
    def done(self) -> bool:
        """Whether all pruning is over and masks change no more."""
        ...

    def penalty(self) -> torch.Tensor | None:
        """What to add to the loss of the coming step; None: nothing."""
        ...

    def step(self) -> dict[str, Array] | None:
        """One step is over. New masks by layer name, if it is time for any."""
        ...

    def prune(self) -> dict[str, Array]:
        """Come to the end at once: the final masks by layer name."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that the coming steps depend on, but for the weights."""
        ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`. Raises TrainingError for the state of another plan or method."""
        ...


class Method(Protocol):
    """Settings of a method, to be given to a :class:`~blockpunch.pruning.torch_prune.Pruner`."""

    @property
    def steps(self) -> int:
        """Training steps until the network is pruned."""
        ...

    def takes(self, entry: LayerPlan) -> bool:
        """Whether a layer with this entry of the plan may lose weights."""
        ...

    def start(self, plan: Plan, layers: Sequence[Layer], targets: Sequence[Target]) -> Schedule:
        """A schedule for the model with ``layers``, of which ``targets`` may be pruned.

        Raises:
            PlanError: the settings ask for more than the plan allows.
        """
        ...
