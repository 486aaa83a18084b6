"""One-shot pruning without training or labels: second-order, layer after layer, from a few hundred photos.

Each layer is pruned for the inputs that the pruned network before it produces, towards what the dense network puts out
there, so that it makes up for the layers before it as well. The mean of its output goes into its bias or into the
batch-norm behind it, whose statistics follow. See :mod:`blockpunch.pruning.obs` for one layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from blockpunch.plan import Plan
from blockpunch.pruning.allocator import memory_kept
from blockpunch.pruning.counts import LayerCount, PruneReport
from blockpunch.pruning.hessian import Moments, grouped, input_columns, positions
from blockpunch.pruning.lockstep import stops
from blockpunch.pruning.looking import images_in, shared, unfit
from blockpunch.pruning.means import Inputs, best_inputs
from blockpunch.pruning.norms import norms_behind
from blockpunch.pruning.objectives import images_of
from blockpunch.pruning.obs import LayerPruner, Solution
from blockpunch.pruning.torch_prune import module_layers

Progress = Callable[[int, int, str], None]
"""Called with (layers done, layers in all, name of the layer)."""
ENOUGH = 4
"""Samples per column that a layer needs to be refitted where the plan keeps it dense."""


@dataclass(frozen=True)
class OneShot:
    """What :func:`prune_oneshot_` did.

    Args:
        report: weights and kept weights of each layer.
        errors: relative squared error of each changed layer's output, against the dense network's.
        masks: layer -> mask of its weight (True stays), of the pruned layers.
        skipped: layers that the plan prunes and that were left dense -> why.
        plan: that was followed.
    """

    report: PruneReport
    plan: Plan
    errors: dict[str, float] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@memory_kept()
def prune_oneshot_(model: nn.Module, plan: Plan, batches: Iterable[Any], *, seed: int = 0,
                   progress: Progress | None = None) -> OneShot:
    """Prune ``model`` in place by ``plan``, every weight that stays made to fit.

    Args:
        model: dense; it keeps its mode. Where anything fails, or is interrupted, it is left dense.
        plan: of this model: every layer of :func:`module_layers` is in it.
        batches: a few hundred unlabelled images as the model takes them, in batches (or sequences that begin with
            images). All are held in memory; the first layers see as many as fit with their activations.
        seed: of the choice of output positions.
        progress: called after each layer.

    Raises:
        DataError: no images, images that the model cannot take, or that are not finite or make it overflow.
        ModelError: a weight is not finite, or the order of the layers depends on the images.
        PlanError: the plan is for another model.
    """
    layers = module_layers(model)
    plan.check(layers)
    images = [images_of(batch) for batch in batches]
    calls = images_in(model, images, layers)
    dense, pruned = (copy.deepcopy(model).eval().to(memory_format=torch.channels_last) for _ in range(2))
    images = [image.contiguous(memory_format=torch.channels_last) if image.ndim == 4 else image for image in images]
    norms = norms_behind(pruned, images[0][:1])
    twins = shared(model, layers)
    reasons = {layer.name: unfit(dense.get_submodule(layer.name), calls[layer.name], twins.get(layer.name))
               for layer in layers}
    skipped = {name: reason for name, reason in reasons.items() if reason and plan.layers[name].prunes}
    work = _Work(pruned, plan, norms, torch.Generator().manual_seed(seed))
    names = [name for name, reason in reasons.items() if not reason]
    with stops([dense, pruned], images, names) as stopped:
        for done, (name, inputs) in enumerate(stopped, start=1):
            work.layer(name, inputs)
            if progress is not None:
                progress(done, len(names), name)
    model.load_state_dict(pruned.state_dict())
    counts = [LayerCount(layer.name, str(entry.scheme), entry.rate, layer.weights,
                         int(torch.count_nonzero(model.get_submodule(layer.name).weight.detach())))
              for layer in layers for entry in [plan.layers[layer.name]]]
    return OneShot(PruneReport(counts), plan, work.errors, work.masks, skipped)


def first_images(batches: Iterable[Any], count: int) -> list[Any]:
    """The first ``count`` images of ``batches`` (or all, where there are fewer), in batches."""
    taken: list[Any] = []
    for batch in batches:
        images = images_of(batch)[:count]
        taken.append(images)
        count -= len(images)
        if count <= 0:
            break
    return taken


@dataclass
class _Work:
    """Prunes or refits one layer after the other."""

    model: nn.Module
    plan: Plan
    norms: Mapping[str, list[nn.Module]]
    generator: torch.Generator
    errors: dict[str, float] = field(default_factory=dict)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)

    def layer(self, name: str, inputs: Inputs) -> None:
        """Work on layer ``name``, given what (dense network, pruned network) feed it for each batch."""
        layer, entry = self.model.get_submodule(name), self.plan.layers[name]
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if not entry.prunes and not self.errors:
            return  # nothing before it has changed
        norms = self.norms.get(name, [])
        centred = layer.bias is not None or bool(norms)
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        weight = grouped(layer)

        def moments_of(inputs: Inputs) -> Moments:
            moments = self._moments(layer, Moments(weight, centred=centred), inputs)
            moments.check(name)
            return moments

        def solved(moments: Moments) -> Solution:
            pruner = LayerPruner(moments, tuple(layer.weight.shape), groups)
            return pruner.prune(entry.scheme, entry.rate) if entry.prunes else pruner.refit()

        if entry.prunes:
            inputs = best_inputs(layer, inputs, moments_of, lambda given: solved(given).weight.reshape(weight.shape))
        moments = moments_of(inputs)
        if not entry.prunes and moments.count < ENOUGH * weight.shape[2]:
            return
        solution = solved(moments)
        self.errors[name] = solution.error
        if entry.prunes:
            self.masks[name] = solution.mask
        with torch.no_grad():
            layer.weight.copy_(solution.weight)
            self._settle(layer, norms, moments, solution.weight.reshape(weight.shape))
            if entry.scheme.regularity == "filter":
                _silence(layer, norms, ~solution.mask.flatten(1).any(dim=1))

    def _moments(self, layer: nn.Conv2d | nn.Linear, moments: Moments, inputs: Inputs) -> Moments:
        """The ``moments``, with the samples of all batches in them."""
        most = positions(layer, sum(len(x) for _, x in inputs))
        for wanted, x in inputs:
            state = self.generator.get_state()
            columns = input_columns(layer, x.float(), self.generator, most)
            self.generator.set_state(state)
            moments.add(columns, input_columns(layer, wanted.float(), self.generator, most) if self.errors else None)
        return moments

    def _settle(self, layer: nn.Conv2d | nn.Linear, norms: list[nn.Module], moments: Moments,
                weight: torch.Tensor) -> None:
        """Let the bias, or the statistics of the batch-norms behind the layer, follow its new weight."""
        if not moments.centred:
            return
        shift = moments.mean_shift(weight).flatten()
        if layer.bias is not None:
            layer.bias.add_(shift)
            return
        for norm in norms:
            norm.running_mean.sub_(shift)


def _silence(layer: nn.Conv2d | nn.Linear, norms: list[nn.Module], dead: torch.Tensor) -> None:
    """Filters without weights put out zero, so that they can be left out; the layers behind make up for it."""
    if layer.bias is not None:
        layer.bias[dead] = 0
    for norm in norms:
        for parameter in (norm.weight, norm.bias):
            if parameter is not None:
                parameter[dead] = 0
