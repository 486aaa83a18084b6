"""What a plan really costs: the network pruned by it in one shot, asked about images that nothing was fitted to."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from blockpunch.atomic import write_text
from blockpunch.errors import DataError
from blockpunch.plan import Plan
from blockpunch.pruning.allocator import memory_kept
from blockpunch.pruning.oneshot import OneShot, prune_oneshot_

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, float, float], None]
"""Called with a line of text, what is done, and what there is to do."""

Keep = Callable[[Plan, nn.Module, OneShot, "Drop"], None]
"""Called with each plan that was tried, the network pruned by it, how, and the accuracy it costs."""

FORMAT, VERSION = "blockpunch-evaluations", 1


@dataclass(frozen=True)
class Drop:
    """Accuracy that a plan costs.

    Attributes:
        points: of top-1 accuracy lost, negative where it rose. Without labels: what is to be expected, see
            :func:`drop`.
        error: standard error of ``points``.
        agreement: share of the images with the same first answer as the dense network.
    """

    points: float
    error: float
    agreement: float

    def __str__(self) -> str:
        return f"{self.points:.2f} ± {self.error:.2f} points lost, {self.agreement:.1%} answered alike"


def drop(dense: Floats, pruned: Floats, labels: npt.NDArray[np.int64] | None) -> Drop:
    """The accuracy that is lost from one network's scores to the other's, both ``[images, classes]``.

    With labels an image counts 1 where only the dense network is right, and -1 where only the pruned one is. Without,
    the dense network's own confidence stands in for the truth: an image that is answered otherwise counts the
    probability that the dense network gives its own answer, less that which it gives the new one. That is the expected
    loss where its confidence is right: answers that it hardly preferred to others cost little when they change.
    """
    first, second = dense.argmax(1), pruned.argmax(1)
    if labels is not None:
        lost = (first == labels).astype(np.float64) - (second == labels)
    else:
        chances = _probabilities(dense)
        rows = np.arange(len(dense))
        lost = chances[rows, first] - chances[rows, second]
    spread = float(lost.std(ddof=1)) / math.sqrt(len(lost)) if len(lost) > 1 else math.inf
    return Drop(100 * float(lost.mean()), 100 * spread, float((first == second).mean()))


def _probabilities(scores: Floats) -> Floats:
    """Of networks that end in a softmax their output, else the softmax of it."""
    if (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-3):
        return scores
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


class Evaluation:
    """Evaluates plans of one network; what was evaluated stays in a file and is not evaluated again.

    Args:
        model: dense; left as it is.
        images: batches to prune on.
        held_out: other batches, to ask both networks about.
        labels: of ``held_out``, as numbers of outputs; None: there are none.
        store: JSON file of the evaluations.
        seed: of the pruning.
        progress: told about the layers of a running evaluation.
        keep: given each pruned network, before the evaluation is stored.

    Raises:
        DataError: the network does not give one score for each class, a label is none of them, or the store is of
            another network or other images.
    """

    def __init__(self, model: nn.Module, images: Sequence[Tensor], held_out: Sequence[Tensor],
                 labels: npt.NDArray[np.int64] | None = None, *, store: str | Path | None = None, seed: int = 0,
                 progress: Progress | None = None, keep: Keep | None = None) -> None:
        self.model, self.images, self.held_out, self.labels, self.seed = model, images, held_out, labels, seed
        self.store, self.progress = None if store is None else Path(store), progress
        self.keep = keep
        self.scores = self._ask(model)
        if labels is not None and (len(labels) != len(self.scores) or labels.min() < 0
                                   or labels.max() >= self.scores.shape[1]):
            raise DataError(f"{len(labels)} labels from {labels.min()} to {labels.max()} for {len(self.scores)} images "
                            f"and {self.scores.shape[1]} outputs", fix="correct the labels, or their offset")
        self.known: dict[str, Drop] = self._read()

    def __call__(self, plan: Plan) -> Drop:
        """The accuracy that ``plan`` costs, in one shot and without training."""
        key = _key(plan)
        if key not in self.known:
            pruned = copy.deepcopy(self.model)
            how = prune_oneshot_(pruned, plan, self.images, seed=self.seed, progress=self._layer)
            found = drop(self.scores, self._ask(pruned), self.labels)
            if self.keep is not None:
                self.keep(plan, pruned, how, found)
            self.known[key] = found
            if self.store is not None:
                record = {"format": FORMAT, "version": VERSION, "source": self._source(),
                          "drops": {known: asdict(found) for known, found in self.known.items()}}
                write_text(self.store, json.dumps(record, indent=1) + "\n")
        return self.known[key]

    def _layer(self, done: int, total: int, name: str) -> None:
        if self.progress is not None:
            self.progress(f"trying plan {len(self.known) + 1}: {name}", done, total)

    @memory_kept()
    def _ask(self, model: nn.Module) -> Floats:
        """Scores ``[images, classes]``."""
        training = model.training
        try:
            with torch.no_grad():
                outputs = [model.eval()(batch) for batch in self.held_out]
        finally:
            model.train(training)
        outputs = [output[0] if isinstance(output, (tuple, list)) else output for output in outputs]
        if not outputs or any(output.ndim != 2 or output.shape[1] < 2 for output in outputs):
            raise DataError("accuracy is known for networks that give images one score for each class",
                            fix="give a speed-up or a latency as the goal")
        return np.asarray(torch.cat(outputs).double().cpu().numpy(), np.float64)

    def _source(self) -> str:
        """Tells the network, the images and the labels from others."""
        labels = None if self.labels is None else self.labels.tolist()
        digest = hashlib.sha256(repr((self.seed, labels)).encode())
        digest.update(self.scores.tobytes())
        for batch in self.images:
            digest.update(batch.numpy().tobytes())
        return digest.hexdigest()[:16]

    def _read(self) -> dict[str, Drop]:
        if self.store is None or not self.store.exists():
            return {}
        try:
            data = json.loads(self.store.read_text(encoding="utf-8"))
            if (data["format"], data["version"]) != (FORMAT, VERSION):
                raise ValueError
            source, found = data["source"], {str(key): Drop(**value) for key, value in data["drops"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError("holds no evaluations", where=str(self.store), fix="remove the file") from error
        if source != self._source():
            raise DataError("these evaluations are of another model or of other images", where=str(self.store),
                            fix="name another file, or remove this one")
        return found


def _key(plan: Plan) -> str:
    """What a plan does to the weights, whatever its reasons."""
    return hashlib.sha256(repr(plan.effect()).encode()).hexdigest()[:24]
