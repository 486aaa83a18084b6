"""Reweighted regularisation: a penalty on every group of every regularity drives the groups that matter least to zero.

``strength * sum_layers cost_l * sum_groups n_g * s_g / (s_g' + epsilon)`` is added to the loss, with ``s_g`` the mean
square of a group's ``n_g`` weights and ``s_g'`` the same when the penalty was last reweighted (Gong et al., ACM TODAES
2022, arXiv 2111.11581; Candes, Wakin, Boyd 2008). Small groups are charged more and more and vanish; large ones hardly
feel it. For groups that stand still a term is the number of their weights, so that the sum is near the cost of what is
kept, whatever mixture of group sizes the plan has. Squares rather than norms, since between two reweightings their
gradient is one product per weight, with no sums over groups: it costs a training step next to nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from blockpunch.errors import PlanError, TrainingError
from blockpunch.plan import Layer, LayerPlan, Plan
from blockpunch.pruning.groups import Array, Floats, LayerGroups, check_target, cost_shares, keep_counts
from blockpunch.pruning.method import Target
from blockpunch.pruning.penalty import weighted_squares

log = logging.getLogger(__name__)

RAMP = 0.9
"""Share of the regularisation after which the target should be reached."""
FASTEST = (0.25, 1.4)
"""Factors between which the strength is changed at one check; down faster than up, since what is gone stays gone."""
FIRM = 0.3
"""Mean square of a group, relative to its layer's at the start, from which on it counts as wholly alive."""
LARGEST = 1.0
"""Bound of a weight's coefficient: descent stays stable up to a learning rate of 0.6 (SGD, Nesterov momentum 0.9)."""
STRONGEST = 0.1
"""Bound of the steered coefficient of an average group, so that small groups are always charged more than it."""


@dataclass(frozen=True)
class Reweighted:
    """Settings of reweighted regularisation. What it prunes towards:

    - ``target_rate``: a rate for the whole network. Each layer's own rate is an outcome. The strength is steered.
    - ``strength``: a penalty of fixed strength. Groups that it drives to zero are removed; all rates are an outcome.
    - neither: the plan's rate of each layer. A strength per layer is steered.

    Args:
        steps: training steps with the penalty; the network is pruned at the end of the last one.
        target_rate: cost of all prunable layers, dense, over their cost when pruned.
        strength: of the penalty, in units of the loss for the whole network.
        cost: layer name -> what the dense layer costs, in MACs or measured milliseconds; None: the weights count.
        checks: times, evenly spread, at which the penalty is reweighted and its strength steered.
        reweight: False gives fixed regularisation, which charges all groups of a layer alike (to compare with).
        epsilon: keeps a vanishing group's charge finite; relative to the mean square of the layer.
        gone: groups whose mean square is below this share of the layer's (at the start) count as zero.
        max_rate: largest rate of a single layer, with ``target_rate`` or ``strength``.
    """

    steps: int
    target_rate: float | None = None
    strength: float | None = None
    cost: Mapping[str, float] | None = None
    checks: int = 40
    reweight: bool = True
    epsilon: float = 0.01
    gone: float = 0.01
    max_rate: float = 50.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.checks < 1:
            raise TrainingError("reweighted regularisation needs at least one step and one check")
        for name, least in (("target_rate", 1.0), ("strength", 0.0), ("epsilon", 0.0), ("gone", 0.0),
                            ("max_rate", 1.0)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > least):
                raise TrainingError(f"{name} must be above {least:g}, not {value}")
        if self.target_rate is not None and self.strength is not None:
            raise TrainingError("a target rate and a fixed strength exclude each other", fix="give one of them")

    def takes(self, entry: LayerPlan) -> bool:
        """Towards the plan's own rates only layers with a rate above 1 are pruned, otherwise all with a scheme."""
        return entry.prunes if self.target_rate is None and self.strength is None else entry.scheme.prunes

    def start(self, plan: Plan, layers: Sequence[Layer], targets: Sequence[Target]) -> ReweightedSchedule:
        """A schedule for one network; see :class:`~blockpunch.pruning.method.Method`."""
        shares = cost_shares(layers, self.cost)
        if self.target_rate is not None:
            check_target(plan, layers, shares, self.target_rate, self.max_rate)
        if not targets:
            raise PlanError("the plan prunes no layer", fix="give some layers a scheme other than dense")
        return ReweightedSchedule(self, targets, shares)


class ReweightedSchedule:
    """Reweighted regularisation at work: see :class:`~blockpunch.pruning.method.Schedule`."""

    def __init__(self, settings: Reweighted, targets: Sequence[Target], shares: Mapping[str, float]) -> None:
        self.settings, self.targets, self.count, self.removed = settings, list(targets), 0, math.nan
        self.groups = []
        for target in targets:
            reference = float(np.mean(np.square(target.array(), dtype=np.float64)))
            if not (math.isfinite(reference) and reference > 0):
                raise PlanError("the weights are all zero, or not finite", where=f"layer '{target.layer.name}'",
                                fix="leave the layer dense, or repair the model")
            self.groups.append(LayerGroups(target.layer, target.entry.scheme, shares[target.layer.name], reference))
        self.goals, self.strengths = self._goals(), self._first_strengths()
        self.coefficients: list[torch.Tensor] = []
        weights = [target.array() for target in targets]
        self.alive = self._alive([group.sizes(weight) for group, weight in zip(self.groups, weights, strict=True)])
        self._reweight(weights)

    def _goals(self) -> list[float]:
        """The share of each layer's weights, or of all their cost together, that should live in the end."""
        settings = self.settings
        if settings.target_rate is None:
            return [1 / target.entry.rate for target in self.targets]
        ours = sum(group.cost * group.layer.weights for group in self.groups)
        return [(1 / settings.target_rate - (1 - ours)) / ours] * len(self.groups)

    def _first_strengths(self) -> list[float]:
        """A guess, on the low side: at a usual learning rate an average group would lose a fifth in the given steps."""
        if self.settings.strength is not None:
            return [self.settings.strength] * len(self.groups)
        first = [min(STRONGEST, 0.5 / self.settings.steps) * limit / STRONGEST for limit in self._limits()]
        return first if self.settings.target_rate is None else [float(np.median(first))] * len(first)

    def _limits(self) -> list[float]:
        """The largest strength that steering may choose for each layer."""
        return [STRONGEST * group.reference / group.cost for group in self.groups]

    @property
    def done(self) -> bool:
        """Whether the network is pruned."""
        return self.count >= self.settings.steps

    def penalty(self) -> torch.Tensor | None:
        """The penalty on the weights as they are now, with a gradient."""
        if self.done:
            return None
        return weighted_squares([target.parameter for target in self.targets], self._beside_weights())

    def step(self) -> dict[str, Array] | None:
        """Reweight and steer at the checks; the masks after the last step."""
        if self.done:
            return None
        self.count += 1
        if self.count == self.settings.steps:
            return self._prune()
        every = self.settings.steps / self.settings.checks
        if int(self.count / every) > int((self.count - 1) / every):
            weights = self._weights()
            self._steer([group.sizes(weight) for group, weight in zip(self.groups, weights, strict=True)])
            self._reweight(weights)
        return None

    def prune(self) -> dict[str, Array]:
        """The final masks, now; no more penalty."""
        self.count = self.settings.steps
        return self._prune()

    def _weights(self) -> list[Array]:
        weights = [target.array() for target in self.targets]
        for target, weight in zip(self.targets, weights, strict=True):
            if not np.isfinite(weight).all():
                raise TrainingError(f"some weights are not finite after {self.count} steps",
                                    where=f"layer '{target.layer.name}'",
                                    fix="lower the learning rate, and go on from the last good checkpoint")
        return weights

    def _beside_weights(self) -> list[torch.Tensor]:
        """The coefficients on the devices of their weights, in the same memory format."""
        for index, (target, own) in enumerate(zip(self.targets, self.coefficients, strict=True)):
            weight = target.parameter
            if own.device != weight.device or own.stride() != weight.stride():
                self.coefficients[index] = torch.empty_like(weight, requires_grad=False).copy_(own)
        return self.coefficients

    def _reweight(self, weights: Sequence[Array]) -> None:
        """The coefficient of each weight's square, from the groups as they are now and the strength."""
        self.coefficients = []
        for group, weight, strength in zip(self.groups, weights, self.strengths, strict=True):
            own = (group.coefficients(weight, self.settings.epsilon) if self.settings.reweight
                   else np.full(weight.shape, group.cost / group.reference))
            own = np.minimum(strength * own, LARGEST)
            self.coefficients.append(torch.from_numpy(own.astype(np.float32)))

    def _steer(self, sizes: Sequence[Floats]) -> None:
        """Set the strength so that life leaves at the pace that ends at the goal.

        Descent on the penalty shrinks a group in proportion to the strength, so the pace answers in proportion too.
        """
        if self.settings.strength is not None:
            return
        alive, limits = self._alive(sizes), self._limits()
        if self.settings.target_rate is not None:
            limits = [float(np.median(limits))] * len(limits)
        left = max(1.0, self.settings.checks * (RAMP - self.count / self.settings.steps))
        for index, (share, before, goal) in enumerate(zip(alive, self.alive, self.goals, strict=True)):
            wanted, seen = (share - goal) / left, before - share
            factor = wanted / seen if seen > 0 else math.copysign(math.inf, wanted)
            self.strengths[index] = min(self.strengths[index] * min(max(factor, FASTEST[0]), FASTEST[1]), limits[index])
        self.alive = alive
        log.info("step %d: %.1f %% alive, strength %.3g", self.count, 100 * float(np.mean(alive)),
                 float(np.median(self.strengths)))

    def _alive(self, sizes: Sequence[Floats]) -> list[float]:
        """Share of each layer's weights that live, or of all their cost; see :attr:`goals`.

        Between FIRM and ``gone`` weights count by the logarithm of their group's size: a sharp limit would tell of a
        group's end only long after the strength that causes it was chosen.
        """
        gone, firm = math.log(self.settings.gone), math.log(FIRM)
        shares = [float(np.mean(np.clip((np.log(np.maximum(size, 1e-30)) - gone) / (firm - gone), 0, 1)))
                  for size in sizes]
        if self.settings.target_rate is None:
            return shares
        costs = [group.cost * group.layer.weights for group in self.groups]
        return [float(np.average(shares, weights=costs))] * len(shares)

    def _prune(self) -> dict[str, Array]:
        weights = self._weights()
        sizes = [group.sizes(weight) for group, weight in zip(self.groups, weights, strict=True)]
        masks = {target.layer.name: target.mask(rate)
                 for target, rate in zip(self.targets, self._rates(sizes), strict=True)}
        energy = sum(float(np.square(weight, dtype=np.float64).sum()) for weight in weights)
        kept = sum(float(np.square(weight[masks[target.layer.name]], dtype=np.float64).sum())
                   for target, weight in zip(self.targets, weights, strict=True))
        self.removed = 1 - kept / energy if energy else 0.0
        log.info("pruned after %d steps; %.2g of the squared weights were in what went", self.count, self.removed)
        return masks

    def _rates(self, sizes: Sequence[Floats]) -> list[float]:
        settings = self.settings
        if settings.target_rate is not None:
            ours = sum(group.cost * group.layer.weights for group in self.groups)
            counts = keep_counts(self.groups, sizes, self.goals[0] * ours, settings.max_rate)
        elif settings.strength is not None:
            counts = [max(1, round(size.size / settings.max_rate), int((size > settings.gone).sum())) for size in sizes]
        else:
            return [target.entry.rate for target in self.targets]
        return [size.size / count for size, count in zip(sizes, counts, strict=True)]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Steps done, strengths, and every weight's coefficient."""
        state = {f"coefficients.{target.layer.name}": own.detach().cpu().contiguous()
                 for target, own in zip(self.targets, self.coefficients, strict=True)}
        facts = [self.count, self.removed, *self.strengths, *self.alive, *(group.reference for group in self.groups)]
        return {**state, "facts": torch.tensor(facts, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            TrainingError: the state is of another plan or method.
        """
        mine = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if mine != {name: tensor.shape for name, tensor in state.items()}:
            raise TrainingError("the saved state is of another plan or pruning method",
                                fix="use the plan and the method that it was made with")
        count, self.removed, *rest = state["facts"].tolist()
        number = len(self.groups)
        self.count, self.strengths, self.alive = int(count), rest[:number], rest[number:2 * number]
        self.groups = [LayerGroups(group.layer, group.scheme, group.cost, reference)
                       for group, reference in zip(self.groups, rest[2 * number:], strict=True)]
        self.coefficients = [state[f"coefficients.{target.layer.name}"].clone() for target in self.targets]
