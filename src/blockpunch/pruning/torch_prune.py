"""Masks on a torch module: prune it in place and keep it pruned while any training loop runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockpunch.errors import MissingExtraError, ModelError, PlanError, SchemeError, TrainingError
from blockpunch.plan import Layer, LayerPlan, Plan
from blockpunch.pruning.counts import LayerCount, PruneReport

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", "train", "Pruning a torch module") from error

log = logging.getLogger(__name__)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


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


@dataclass
class _Masked:
    """A parameter, its mask (same shape, True stays), and the layer that it belongs to."""

    layer: str
    parameter: nn.Parameter
    mask: torch.Tensor
    is_weight: bool

    def on_device(self) -> torch.Tensor:
        if self.mask.device != self.parameter.device:
            self.mask = self.mask.to(self.parameter.device)
        return self.mask


class Pruner:
    """Prunes ``model`` in place by ``plan`` and holds the masks while it is trained.

    Masks come from the weights as they are now, largest groups first. Nothing changes before :meth:`apply_`::

        pruner = Pruner(model, plan)
        pruner.apply_()
        for batch in loader:
            loss(model(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        pruner.finalize_()

    Gradients of removed weights are masked too, so that no optimizer builds up momentum for them.

    Args:
        model: its ``Conv2d`` and ``Linear`` layers are named by module path, see :func:`module_layers`.
        plan: names every such layer.
        zero_dead: also hold the bias, and the scale and shift of the batch-norm behind the layer, at zero for filters
            that lost all weights; they put out a constant otherwise. None: for layers pruned by 'filter' only.
        example: an input of the model (or a tuple of them), needed to find the batch-norms for ``zero_dead``.

    Raises:
        PlanError: the plan is for another model, or gives two masks to one shared weight.
        ModelError: a weight is not finite.
    """

    def __init__(self, model: nn.Module, plan: Plan, *, zero_dead: bool | None = None, example: Any = None) -> None:
        self.model, self.plan, self.layers = model, plan, module_layers(model)
        plan.check(self.layers)
        self._modules = dict(model.named_modules())
        self._masked: list[_Masked] = []
        self._hooks: list[Any] = []
        self.finished = False
        shared: dict[int, str] = {}
        for layer in self.layers:
            self._add_weight(layer, plan.layers[layer.name], shared)
        silenced = [item.layer for item in self._masked
                    if zero_dead or (zero_dead is None and plan.layers[item.layer].scheme.regularity == "filter")]
        if silenced:
            self._silence_dead(silenced, _batch_norms_behind(model, example) if example is not None else None)
        for item in self._masked:
            self._hooks.append(item.parameter.register_hook(lambda grad, item=item: grad * item.on_device()))

    def _add_weight(self, layer: Layer, entry: LayerPlan, shared: dict[int, str]) -> None:
        weight = self._modules[layer.name].weight
        first = shared.setdefault(id(weight), layer.name)
        if first != layer.name:
            other = self.plan.layers[first]
            if (other.scheme, other.rate) != (entry.scheme, entry.rate):
                raise PlanError(f"the layers '{first}' and '{layer.name}' share one weight but not their plan",
                                fix="give both the same scheme and rate")
            return
        if not entry.prunes:
            return
        try:
            mask = entry.scheme.mask(weight.detach().float().cpu().numpy(), entry.rate, conv_groups=layer.conv_groups)
        except SchemeError as error:
            raise ModelError(error.what, where=f"layer '{layer.name}'") from error
        self._masked.append(_Masked(layer.name, weight, torch.from_numpy(mask), True))

    def _silence_dead(self, names: list[str], norms: Mapping[str, list[nn.Module]] | None) -> None:
        """Mask bias and batch-norm entries of filters that have no weight left."""
        masks = {item.layer: item.mask for item in self._masked}
        for name in names:
            alive = masks[name].flatten(1).any(dim=1)
            if bool(alive.all()):
                continue
            behind = norms.get(name, []) if norms is not None else []
            if norms is None and any(isinstance(module, _BATCH_NORMS) for module in self.model.modules()):
                log.warning("layer '%s' loses whole filters: pass example= to have its batch-norm found", name)
            parameters = [self._modules[name].bias, *(p for norm in behind for p in (norm.weight, norm.bias))]
            self._masked += [_Masked(name, item, alive, False) for item in parameters if item is not None]

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer name -> mask of its weight (bool, True stays), for pruned layers."""
        return {item.layer: item.mask for item in self._masked if item.is_weight}

    def apply_(self) -> PruneReport:
        """Zero the removed weights."""
        self.step()
        return self.report()

    def step(self) -> None:
        """Call after each ``optimizer.step()``: removed weights go back to zero."""
        with torch.no_grad():
            for item in self._masked:
                item.parameter.masked_fill_(~item.on_device(), 0)

    def finalize_(self) -> PruneReport:
        """Zero the removed weights for the last time and let go of the model; training on would fill them again."""
        report = self.apply_()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.finished = [], True
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
        """The masks as tensors, to be saved beside the model's own state."""
        return {self._key(index): item.mask.cpu() for index, item in enumerate(self._masked)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the masks of :meth:`state_dict`; they are applied at the next :meth:`step`.

        Raises:
            TrainingError: the masks are of another model or plan.
        """
        if {self._key(index): item.mask.shape for index, item in enumerate(self._masked)} != {
                key: mask.shape for key, mask in state.items()}:
            raise TrainingError("the saved masks are of another model or plan", fix="use the plan they were made with")
        for index, item in enumerate(self._masked):
            item.mask = state[self._key(index)].to(torch.bool)

    def _key(self, index: int) -> str:
        return f"{index}.{self._masked[index].layer}"


def _batch_norms_behind(model: nn.Module, example: Any) -> dict[str, list[nn.Module]]:
    """Layer name -> the batch-norms that read its output tensor, seen in one forward run on ``example``."""
    producers: dict[int, str] = {}
    alive: list[torch.Tensor] = []  # ids are unique only as long as the tensors live
    found: dict[str, list[nn.Module]] = {}
    names = {module: name for name, module in model.named_modules()}

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, _BATCH_NORMS) and inputs and id(inputs[0]) in producers:
            found.setdefault(producers[id(inputs[0])], []).append(module)
        if isinstance(module, nn.Conv2d | nn.Linear):
            alive.append(output)
            producers[id(output)] = names[module]

    hooks = [module.register_forward_hook(after) for module in model.modules()]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return found
