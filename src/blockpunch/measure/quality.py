"""What pruning cost: the compiled dense and the compiled pruned network on the same held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import Images, Labels, Pixels, Preprocess
from blockpunch.errors import DataError
from blockpunch.runtime.session import Session


@dataclass(frozen=True)
class Check:
    """Held-out images, with labels or without.

    ``photos`` are files, or pixels ``[n, height, width, 3]`` of the network's own size; ``labels`` are class numbers;
    ``offset`` is added to them to get the network's output index; ``source`` says in words what the images are.
    """

    photos: Sequence[Path] | Pixels
    preprocess: Preprocess
    labels: Labels | None = None
    offset: int = 0
    source: str = "images"

    def __len__(self) -> int:
        return len(self.photos)

    def image(self, index: int) -> Images:
        """One image, ready for the network: ``[3, height, width]``."""
        photo: Any = self.photos[index]
        return self.preprocess(photo) if isinstance(photo, Path) else self.preprocess.normalise(photo)

    def fits(self, outputs: int) -> None:
        """Nothing where every label is one of so many outputs.

        Raises:
            DataError: one is not.
        """
        if self.labels is None:
            return
        least, most = int(self.labels.min()) + self.offset, int(self.labels.max()) + self.offset
        if least < 0 or most >= outputs:
            raise DataError(f"labels go from {least} to {most}, the network has {outputs} outputs", where=self.source,
                            fix="correct the labels, or their offset (--label-offset)")

    def facts(self) -> dict[str, Any]:
        """What tells this check from another one, as plain data."""
        names = [str(p) for p in self.photos] if not isinstance(self.photos, np.ndarray) else int(self.photos.sum())
        return {"photos": names, "labels": None if self.labels is None else self.labels.tolist(), "offset": self.offset,
                "preprocess": repr(self.preprocess)}


@dataclass(frozen=True)
class Comparison:
    """What pruning cost, on images that no stage has trained on.

    With labels ``dense`` and ``pruned`` are top-1 accuracies (0..1). Without, ``dense`` is None and ``pruned`` is the
    share of images on which both networks give the same first answer, which is not an accuracy.
    """

    images: int
    source: str
    dense: float | None
    pruned: float
    agreement: float
    only_dense_right: int = 0
    only_pruned_right: int = 0


def compare(dense: Session, pruned: Session, check: Check,
            progress: Callable[[int, int], None] | None = None) -> Comparison:
    """First answers of both networks on every image, counted.

    Raises:
        DataError: no images, images of another size than the networks take, or labels outside their outputs.
    """
    if not len(check):
        raise DataError("no images to compare on")
    shape = tuple(dense.inputs[0].shape)
    answers = np.empty((2, len(check)), np.int64)
    outputs = 0
    for i in range(len(check)):
        image = check.image(i)[None]
        if image.shape != shape:
            raise DataError(f"images come out as {list(image.shape)}, the network takes {list(shape)}",
                            fix="choose a preprocessing of that size")
        for row, session in enumerate((dense, pruned)):
            result = session.run([image])
            scores = np.asarray(result[0] if isinstance(result, tuple) else result).ravel()
            answers[row, i], outputs = int(scores.argmax()), scores.size
        if progress is not None:
            progress(i + 1, len(check))
    agreement = float((answers[0] == answers[1]).mean())
    if check.labels is None:
        return Comparison(len(check), check.source, None, agreement, agreement)
    check.fits(outputs)
    right = answers == check.labels + check.offset
    return Comparison(len(check), check.source, float(right[0].mean()), float(right[1].mean()), agreement,
                      int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
