"""What a pruned network is trained towards: labels, the dense network's outputs, and its layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from blockpunch.errors import TrainingError
from blockpunch.pruning.diagnosis import check_labels

Loss = Callable[[Any, Any], torch.Tensor]
"""(outputs of the model, labels) -> scalar."""


class Objective(Protocol):
    """Anything that turns a batch into a scalar loss."""

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of ``model`` on ``batch``."""
        ...


def images_of(batch: Any) -> Any:
    """The images of a batch, which is a tensor or a sequence that begins with one."""
    return batch[0] if isinstance(batch, tuple | list) else batch


class Labels:
    """Loss against labels; batches are ``(images, labels)``."""

    def __init__(self, loss: Loss | None = None) -> None:
        self.loss = loss or functional.cross_entropy

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Cross-entropy, or the loss given."""
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TrainingError("a batch without labels", fix="let the loader give (images, labels), or use distill()")
        outputs = model(batch[0])
        check_labels(outputs, batch[1])
        return self.loss(outputs.float() if isinstance(outputs, torch.Tensor) else outputs, batch[1])


class Distillation:
    """Loss against a teacher, the dense network: no labels needed.

    Rows of class scores (outputs of two dimensions) are compared by the Kullback-Leibler divergence at ``temperature``;
    other outputs, and the outputs of the layers ``features``, by their squared difference over the teacher's square.

    Args:
        teacher: a module that takes the same images; it is put in eval mode.
        temperature: softens class scores.
        features: module paths, in both networks, whose outputs are compared too.
        feature_weight: of the mean of their losses.
        labels: if given, mixed in with ``1 - weight``.
        weight: of the loss against the teacher's outputs.
        compile: compile the teacher, as :class:`~blockpunch.pruning.recipe.Recipe` does the student.

    Raises:
        TrainingError: ``features`` of compiled networks, whose layers nothing can watch.
    """

    def __init__(self, teacher: nn.Module, *, temperature: float = 4.0, features: Sequence[str] = (),
                 feature_weight: float = 1.0, labels: Loss | None = None, weight: float = 0.9,
                 compile: bool = False) -> None:
        if compile and features:
            raise TrainingError("outputs of layers of a compiled network cannot be compared",
                                fix="train without compile, or without features")
        self.teacher = torch.compile(teacher.eval()) if compile else teacher.eval()
        self.temperature, self.features = temperature, tuple(features)
        self.feature_weight, self.labels, self.weight = feature_weight, labels, weight

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The weighted sum of all terms."""
        images = images_of(batch)
        with captured(model, self.features) as mine:
            outputs = model(images)
        with torch.no_grad(), captured(self.teacher, self.features) as wanted:
            targets = self.teacher(images)
        loss = torch.stack([output_loss(output, target, self.temperature) for output, target
                            in zip(tensors(outputs), tensors(targets), strict=True)]).sum()
        if self.labels is not None:
            check_labels(outputs, batch[1])
            loss = self.weight * loss + (1 - self.weight) * self.labels(outputs.float(), batch[1])
        for name in self.features:
            loss = loss + self.feature_weight / len(self.features) * relative_error(mine[name], wanted[name])
        return loss


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that fills with the outputs of the modules ``names`` when ``model`` runs inside the block.

    Raises:
        TrainingError: the model has no module of such a name.
    """
    modules, outputs, hooks = dict(model.named_modules()), dict[str, torch.Tensor](), []
    for name in names:
        if name not in modules:
            raise TrainingError(f"there is no module '{name}' to compare", fix="name modules that both networks have")
    try:
        for name in names:
            hooks.append(modules[name].register_forward_hook(
                lambda _, __, output, name=name: outputs.__setitem__(name, output)))
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def tensors(outputs: Any) -> Iterable[torch.Tensor]:
    """All tensors of nested outputs, in order."""
    if isinstance(outputs, torch.Tensor):
        yield outputs
    else:
        for item in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(item)


def output_loss(mine: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far an output is from the teacher's: class scores by divergence, anything else by relative squared error."""
    mine, target = mine.float(), target.float()
    if target.ndim != 2 or target.shape[1] < 2:
        return relative_error(mine, target)
    if bool((target >= 0).all() & ((target.sum(1) - 1).abs().max() < 1e-3)):  # already probabilities
        mine, target, temperature = mine.clamp_min(1e-8).log(), target.clamp_min(1e-8).log(), 1.0
    return temperature**2 * functional.kl_div(functional.log_softmax(mine / temperature, 1),
                                              functional.log_softmax(target / temperature, 1),
                                              reduction="batchmean", log_target=True)


def relative_error(mine: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over the mean square of ``target``."""
    mine, target = mine.float(), target.float()
    scale = target.detach().pow(2).mean().clamp_min(1e-12)
    return functional.mse_loss(mine, target) / scale  # one pass forth and one back: maps are larger than caches
