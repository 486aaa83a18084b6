"""Recovery: train a pruned network back with labels, or from the dense network on unlabelled images.

The masks hold throughout. A run with a ``checkpoint`` can be killed at any moment and started again with the same call:
it goes on from the last checkpoint and ends with the same bits as a run that was never interrupted, as long as the
loader draws its randomness from the global generators of torch, numpy or random (or from a torch.Generator that a
DataLoader holds), the number of threads is the same, and no ``minutes`` are set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from blockpunch.pruning.loop import Recovery, Run, Status
from blockpunch.pruning.objectives import Distillation, Labels, Loss, Objective
from blockpunch.pruning.recipe import Recipe
from blockpunch.pruning.torch_prune import Pruner

__all__ = ["Recipe", "Recovery", "Status", "distill", "fine_tune"]


def fine_tune(pruner: Pruner, loader: Iterable[Any], *, recipe: Recipe | None = None, loss: Loss | None = None,
              teacher: nn.Module | None = None, teacher_weight: float = 0.9, features: Sequence[str] = (),
              feature_weight: float = 1.0, validate: Callable[[nn.Module], float] | None = None,
              checkpoint: str | Path | None = None, checkpoint_seconds: float = 60.0,
              progress: Callable[[Status], None] | None = None) -> Recovery:
    """Train with labels while the masks hold.

    Args:
        pruner: its masks are applied first; a method that it has is at work from the first step.
        loader: sized, gives batches ``(images, labels)``, and is gone through once per epoch.
        recipe: optimizer, schedule and budget.
        loss: of (outputs, labels); cross-entropy where none is given.
        teacher: the dense network, to learn from its outputs as well.
        teacher_weight: share of the teacher's loss; the rest is the labels'.
        features: module paths whose outputs are compared with the teacher's too.
        feature_weight: of that comparison.
        validate: called with the model (in eval mode) after each epoch; its result is reported.
        checkpoint: file to go on from if it is there, and to write to.
        checkpoint_seconds: least time between two writes.
        progress: called after each step.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    recipe, labels = recipe or Recipe(), Labels(loss)
    objective: Objective = labels if teacher is None else Distillation(
        teacher, labels=labels.loss, weight=teacher_weight, features=features, feature_weight=feature_weight,
        compile=recipe.compile)
    return Run(pruner, loader, recipe, objective, checkpoint, checkpoint_seconds, progress, validate).go()


def distill(pruner: Pruner, teacher: nn.Module, loader: Iterable[Any], *, recipe: Recipe | None = None,
            temperature: float = 4.0, features: Sequence[str] | None = None, feature_weight: float = 1.0,
            validate: Callable[[nn.Module], float] | None = None, checkpoint: str | Path | None = None,
            checkpoint_seconds: float = 60.0, progress: Callable[[Status], None] | None = None) -> Recovery:
    """Train on unlabelled images towards the outputs of ``teacher``, the dense network, while the masks hold.

    Args:
        pruner: its masks are applied first.
        teacher: takes the same images; for example a copy of the model from before pruning.
        loader: sized, gives images ``[N, C, H, W]`` or sequences that begin with them, once through per epoch.
        recipe: optimizer, schedule and budget; None: Adam, ``as_used``.
        temperature: softens class scores.
        features: module paths whose outputs are compared as well. None: the pruned layers, where the teacher has them.
        feature_weight: of that comparison.
        validate, checkpoint, checkpoint_seconds, progress: as in :func:`fine_tune`.

    Raises:
        TrainingError: the loss is not finite, or the checkpoint is of another run.
        OutputError: the checkpoint cannot be written.
    """
    if features is None:
        known = dict(teacher.named_modules())
        features = [name for name in pruner.plan.pruned() if name in known]
    recipe = recipe or Recipe(optimizer="adam", as_used=True)
    objective = Distillation(teacher, temperature=temperature, features=features, feature_weight=feature_weight,
                             compile=recipe.compile)
    return Run(pruner, loader, recipe, objective, checkpoint, checkpoint_seconds, progress, validate).go()
