"""Masks on a torch module: prune it in place and keep it pruned while any training loop runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from blockpunch.errors import MissingExtraError, ModelError, PlanError, TrainingError
from blockpunch.plan import Layer, Plan
from blockpunch.pruning.counts import LayerCount, PruneReport
from blockpunch.pruning.groups import Array

try:
    import torch
    from torch import distributed, nn

    from blockpunch.pruning.masks import HeldMasks
    from blockpunch.pruning.method import Method, Schedule, Target
    from blockpunch.pruning.norms import NormWatch, has_norms, norms_behind
except ImportError as error:
    raise MissingExtraError("torch", "train", "Pruning a torch module") from error

log = logging.getLogger(__name__)


def module_layers(model: nn.Module) -> list[Layer]:
    """The prunable layers of a module: ``Conv2d`` and ``Linear`` by module path, in the order of registration.

    A layer that several paths lead to is listed once, under the first.
    """
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            layers.append(Layer(name, "conv", tuple(module.weight.shape), module.groups))
        elif isinstance(module, nn.Linear):
            layers.append(Layer(name, "linear", tuple(module.weight.shape)))
    return layers


class Pruner:
    """Prunes ``model`` in place by ``plan``, while it is trained or before, and keeps it pruned.

    With a ``method`` the weights to remove are found during training, in any loop, with any optimizer::

        pruner = Pruner(model, plan, method=Reweighted(steps=4 * len(loader), target_rate=3))
        for batch in loader:
            (loss(model(batch)) + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        pruner.finalize_()

    When the method's steps are over the network is pruned, the penalty is zero, and the masks hold: training on is the
    masked retraining. Without a method the largest groups of the weights as they are now stay, nothing changes before
    :meth:`apply_`, and the same loop trains what is left.

    Gradients of removed weights are masked too, so that no optimizer builds up momentum for them. Under
    ``torch.distributed`` all ranks take the masks of rank 0. Exact to the bit after a resume from :meth:`state_dict`.

    Args:
        model: its ``Conv2d`` and ``Linear`` layers are named by module path, see :func:`module_layers`. A
            ``DistributedDataParallel`` or compiled wrapper is looked through.
        plan: names every such layer.
        method: :class:`~blockpunch.pruning.reweighted.Reweighted` or :class:`~blockpunch.pruning.gradual.Gradual`.
        zero_dead: also hold the bias, and the scale and shift of the batch-norm behind the layer, at zero for filters
            that lost all weights; they put out a constant otherwise. None: for all layers where a method prunes, since
            training makes up for it, otherwise for layers pruned by 'filter' only.
        example: an input of the model (or a tuple of them), to find the batch-norms for ``zero_dead``. None: they are
            found in the first forward pass, which without a method is after :meth:`apply_` and so too late.

    Raises:
        PlanError: the plan is for another model, gives two masks to one shared weight, or allows less than the method
            asks for.
        ModelError: a weight is not finite.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, method: Method | None = None, zero_dead: bool | None = None,
                 example: Any = None) -> None:
        self.model = unwrapped(model)
        self.plan, self.method, self.layers = plan, method, module_layers(self.model)
        plan.check(self.layers)
        self._modules = dict(self.model.named_modules())
        self._zero_dead = zero_dead if zero_dead is not None or method is None else True
        self._masked = HeldMasks()
        self._agreed = self.finished = False
        self._targets = self._choose(method)
        self._norms = norms_behind(self.model, example) if example is not None else None
        self._watch: NormWatch | None = None
        self._schedule: Schedule | None = None
        if method is None:
            self._set_masks({target.layer.name: target.mask(target.entry.rate) for target in self._targets})
        else:
            self._schedule = method.start(plan, self.layers, self._targets)
            self._watch = NormWatch(self.model) if self._norms is None and self._zero_dead else None

    def _choose(self, method: Method | None) -> list[Target]:
        """The weights that may be pruned, each once."""
        targets, shared = [], dict[int, str]()
        for layer in self.layers:
            entry, weight = self.plan.layers[layer.name], self._modules[layer.name].weight
            first = shared.setdefault(id(weight), layer.name)
            other = self.plan.layers[first]
            if (other.scheme, other.rate) != (entry.scheme, entry.rate):
                raise PlanError(f"the layers '{first}' and '{layer.name}' share one weight but not their plan",
                                fix="give both the same scheme and rate")
            if not bool(weight.detach().isfinite().all()):
                raise ModelError("some weights are NaN or infinite", where=f"layer '{layer.name}'",
                                 fix="repair the model; such weights cannot be ranked")
            if first == layer.name and (entry.prunes if method is None else method.takes(entry)):
                targets.append(Target(layer, entry, weight))
        return targets

    def take(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Hold these masks (layer -> bool, True stays) instead of those by magnitude, as one-shot pruning finds them.

        Raises:
            TrainingError: a layer that the plan does not prune, or another shape.
        """
        for name, mask in masks.items():
            if name not in self.masks or self.masks[name].shape != mask.shape:
                raise TrainingError("the masks are of another model or plan", where=f"layer '{name}'",
                                    fix="use the plan they were made with")
        self._set_masks({**{name: mask.cpu().numpy() for name, mask in self.masks.items()},
                         **{name: mask.cpu().numpy() for name, mask in masks.items()}})

    def _set_masks(self, masks: Mapping[str, Array]) -> None:
        """Hold these masks of layers from now on, and silence the filters that have no weight left."""
        self._end_watch()
        for name, mask in masks.items():
            self._masked.hold(f"{name}.weight", self._modules[name].weight, torch.from_numpy(mask))
        self._silence_dead()
        self._agreed = False

    def _end_watch(self) -> None:
        """Take the batch-norms that were seen so far."""
        if self._watch is not None:
            self._norms = self._watch.found
            self._watch.close()
            self._watch = None

    def _silence_dead(self) -> None:
        """Hold bias and batch-norm at zero where the masks leave a filter no weight."""
        self._masked.drop(self._masked.names() - self._weights())
        dying = []
        for name, mask in self.masks.items():
            alive = mask.flatten(1).any(dim=1)
            regularity = self.plan.layers[name].scheme.regularity
            if not bool(alive.all()) and (self._zero_dead or (self._zero_dead is None and regularity == "filter")):
                self._silence(name, self._modules[name], alive)
                dying.append(name)
        if dying and self._norms is None and has_norms(self.model):
            log.warning("whole filters go from %s: pass example= to have the batch-norm behind found",
                        f"'{dying[0]}'" + (f" and {len(dying) - 1} more" if len(dying) > 1 else ""))

    def _silence(self, name: str, module: nn.Module, alive: torch.Tensor) -> None:
        """Mask bias and batch-norm entries of filters that are not ``alive``."""
        if module.bias is not None:
            self._masked.hold(f"{name}.bias", module.bias, alive)
        paths = {norm: path for path, norm in self._modules.items()}
        for norm in (self._norms or {}).get(name, []):
            for field in ("weight", "bias"):
                if getattr(norm, field) is not None:
                    self._masked.hold(f"{paths[norm]}.{field}", getattr(norm, field), alive)

    def _weights(self) -> set[str]:
        """Names of the weights that may be pruned."""
        return {f"{target.layer.name}.weight" for target in self._targets}

    def _agree(self) -> None:
        """Take the masks of rank 0, where several processes train together."""
        if self._agreed or not (distributed.is_available() and distributed.is_initialized()):
            return
        self._masked.take_from_first_rank(f"{name}.weight" for name in self.masks)
        self._silence_dead()
        self._agreed = True

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> mask of its weight (bool, True stays), for layers that are pruned by now."""
        names = (target.layer.name for target in self._targets)
        return {name: self._masked[f"{name}.weight"] for name in names if f"{name}.weight" in self._masked}

    @property
    def pruned(self) -> bool:
        """Whether the masks are final: at once without a method, else when its steps are over."""
        return self._schedule is None or self._schedule.done

    def penalty(self) -> torch.Tensor:
        """What the method adds to the loss of this step: a scalar with a gradient; zero where there is nothing to add.

        Its gradient does not depend on the data: clip the gradient of the loss before it is added, or not at all.
        """
        value = None if self._schedule is None else self._schedule.penalty()
        if value is not None:
            return value
        return torch.zeros((), device=next(self.model.parameters()).device, requires_grad=True)

    def apply_(self) -> PruneReport:
        """Zero the removed weights. A method that is still at work comes to its end now."""
        if self._schedule is not None and not self._schedule.done:
            self._set_masks(self._schedule.prune())
        self.apply_to_(self.model)
        return self.report()

    def apply_to_(self, model: nn.Module) -> None:
        """Zero the removed weights of ``model``: this one's, or a copy of it such as an average of weights (EMA)."""
        self._agree()
        parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
        if not self._masked.names() <= parameters.keys():
            raise ModelError("the model lacks the parameters that are pruned", fix="pass a copy of the pruned model")
        self._masked.zero_(parameters)

    def step(self) -> None:
        """Call after each ``optimizer.step()``: the method moves on, removed weights go back to zero.

        Raises:
            TrainingError: a weight is not finite where the method looks at it.
        """
        if self._watch is not None and self._watch.found:
            self._end_watch()
        masks = self._schedule.step() if self._schedule is not None else None
        if masks is not None:
            self._set_masks(masks)
        self._agree()
        self._masked.zero_()

    def finalize_(self) -> PruneReport:
        """Zero the removed weights for the last time and let go of the model; training on would fill them again.

        Raises:
            TrainingError: the method is still at work, so that the network is not pruned yet.
        """
        if not self.pruned:
            raise TrainingError("the method has not come to its end, so the network is not pruned",
                                fix="train for the steps that it was given, or call apply_() to prune now")
        report = self.apply_()
        self._masked.release()
        self.finished = True
        return report

    def report(self) -> PruneReport:
        """Weights and non-zero weights of each layer, counted now."""
        counts = []
        for layer in self.layers:
            entry, weight = self.plan.layers[layer.name], self._modules[layer.name].weight
            counts.append(LayerCount(layer.name, str(entry.scheme), entry.rate, layer.weights,
                                     int(torch.count_nonzero(weight.detach()))))
        return PruneReport(counts)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masks and the state of the method as tensors, to be saved beside the model's own state."""
        state = {f"mask.{name}": mask for name, mask in self._masked.state_dict().items()}
        method = self._schedule.state_dict() if self._schedule is not None else {}
        return {**state, **{f"method.{name}": tensor for name, tensor in method.items()}}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the masks and the state of :meth:`state_dict`; they are applied at the next :meth:`step`.

        Raises:
            TrainingError: they are of another model, plan or method.
        """
        masks = {name.removeprefix("mask."): mask for name, mask in state.items() if name.startswith("mask.")}
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        fits = all(name in parameters and parameters[name].shape == mask.shape for name, mask in masks.items())
        present = masks.keys() & {f"{layer.name}.weight" for layer in self.layers}
        if not fits or (present != self._weights() and (present or self._schedule is None)):
            raise TrainingError("the saved masks are of another model or plan", fix="use the plan they were made with")
        method = {name.removeprefix("method."): tensor for name, tensor in state.items() if name.startswith("method.")}
        if self._schedule is not None:
            self._schedule.load_state_dict(method)
        elif method:
            raise TrainingError("the saved masks belong to a pruning method", fix="give the pruner the same method")
        self._masked.drop(self._masked.names() - masks.keys())
        for name, mask in masks.items():
            self._masked.hold(name, parameters[name], mask.to(torch.bool))
        self._agreed = True  # every rank has loaded the same


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside what ``torch.compile`` and data parallelism put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
