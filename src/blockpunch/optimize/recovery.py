"""Pruning on photos: in one shot by second-order errors, then distilled from the dense network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import spread
from blockpunch.optimize.event import Event
from blockpunch.optimize.photos import Photos, batches, split_photos
from blockpunch.optimize.source import Source
from blockpunch.plan import Plan

ONE_SHOT_BATCH = 16
WATCHED = 128
"""Photos at most that nothing is fitted to: they tell whether distillation helped, or learned its photos by heart."""


def save_one_shot(path: Path, pruned: Any, found: Any) -> None:
    """Write a network pruned in one shot, and the :class:`OneShot` that tells how, for :meth:`Recovery.run`."""
    from blockpunch.pruning import checkpoint

    tensors = {f"model/{name}": tensor for name, tensor in pruned.state_dict().items()}
    checkpoint.save(path, tensors | {f"mask/{name}": mask.byte() for name, mask in found.masks.items()}, {})


@dataclass
class Recovery:
    """Prunes ``source`` by ``plan`` on ``photos``, and distils it for ``minutes`` (0: not at all). Needs torch."""

    source: Source
    plan: Plan
    photos: Photos
    minutes: float
    batch: int
    learning_rate: float | None
    seed: int
    show: Callable[[Event], None]

    def one_shot(self, path: Path, tried: Path | None = None) -> None:
        """Prune in one shot, into the file ``path`` that :meth:`run` begins with.

        ``tried`` takes its place where it is there: the same, from a trial of the plan.
        """
        import torch

        if tried is not None and tried.exists():
            tried.replace(path)
            return
        from blockpunch.pruning.graph_module import GraphModule
        from blockpunch.pruning.oneshot import prune_oneshot_

        torch.manual_seed(self.seed)
        student = GraphModule(self.source.graph)
        fit, _ = split_photos(len(self.photos.pixels), self.photos.size)
        found = prune_oneshot_(student, self.plan, self.photos.centres(fit, ONE_SHOT_BATCH),
                               progress=lambda done, total, name: self.show(
                                   Event(f"one-shot: layer {done} of {total}", done, total)))
        save_one_shot(path, student, found)

    def run(self, path: Path, one_shot: Path, checkpoint: Path) -> str:
        """Write the ONNX file ``path``; goes on from ``checkpoint`` where there is one. Returns what was done."""
        from blockpunch.pruning import checkpoint as files
        from blockpunch.pruning.graph_module import GraphModule
        from blockpunch.pruning.recover import Recipe, Status, distill
        from blockpunch.pruning.torch_prune import Pruner

        student, text = GraphModule(self.source.graph), "Pruned in one shot by second-order errors"
        teacher = copy.deepcopy(student)
        pruner = Pruner(student, self.plan)
        tensors, _ = files.load(one_shot)
        student.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model/")})
        pruner.take({name[5:]: tensor.bool() for name, tensor in tensors.items() if name.startswith("mask/")})

        def progress(status: Status) -> None:
            self.show(Event(f"distil: step {status.step}, loss {status.loss:.3f}", status.seconds, self.minutes * 60))

        if self.minutes > 0:
            _, rest = split_photos(len(self.photos.pixels), self.photos.size)
            watched = spread(rest, WATCHED)
            begun, before = copy.deepcopy(student.state_dict()), self._distance(student, teacher, watched)
            seen = replace(self.photos, pixels=np.delete(self.photos.pixels, np.asarray(watched, np.int64), axis=0))
            recipe = Recipe(epochs=100_000, minutes=self.minutes, optimizer="adam", seed=self.seed,
                            lr=self.learning_rate, warmup_steps=10, as_used=True)
            result = distill(pruner, teacher, batches(seen, self.batch), recipe=recipe, progress=progress,
                             checkpoint=checkpoint, checkpoint_seconds=20.0)
            if self._distance(student, teacher, watched) <= before:
                text += f", then distilled from the dense network for {self.minutes:g} minutes ({result.steps} steps)"
            else:
                student.load_state_dict(begun)
                text += (f"; {result.steps} steps of distillation brought it no nearer to the dense network on "
                         f"{len(watched)} other photos, and were undone")
        pruner.finalize_()
        self.source.write(student.constants(), path)
        checkpoint.unlink(missing_ok=True)
        return f"{text}, on {self.photos.source}."

    def _distance(self, student: Any, teacher: Any, numbers: Sequence[int]) -> float:
        """How far the answers are from the teacher's on some photos, 0 without any."""
        import torch

        from blockpunch.pruning.objectives import output_loss, tensors

        found = 0.0
        with torch.no_grad():
            for images in self.photos.centres(numbers, ONE_SHOT_BATCH) if numbers else ():
                pairs = zip(tensors(student.eval()(images)), tensors(teacher.eval()(images)), strict=True)
                found += len(images) * sum(float(output_loss(mine, target, 1.0)) for mine, target in pairs)
        return found
