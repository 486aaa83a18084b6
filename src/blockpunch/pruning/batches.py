"""Training batches from images that are already in memory: random crops, mirrored half of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch.nn import functional

from blockpunch.errors import DataError


class ImageBatches:
    """Shuffled batches of augmented images, for :mod:`blockpunch.pruning.recover`.

    Order and augmentation come from torch's global generator, so that a run can be resumed to the bit; they are the
    same on every device.

    Args:
        images: uint8 ``[n, channels, height, width]``.
        labels: int64 ``[n]``; None gives batches of images alone.
        normalise: pixels ``[batch, channels, size, size]`` as uint8 tensors on ``device`` -> what the network takes.
        batch: images in a batch; what does not fill one is left out of the epoch.
        pad: zeros around each image before it is cropped.
        size: height and width of the crops; None: those of the images.
        mirror: mirror half of the images.
        steps: batches in an epoch, where that is fewer than the images fill; each epoch draws from all images.
        device: where the images are kept and augmented: the network's own, if they fit.

    Raises:
        DataError: arrays that do not fit together, or fewer images than a batch.
    """

    def __init__(self, images: npt.NDArray[Any], labels: npt.NDArray[Any] | None, normalise: Callable[[Any], Any], *,
                 batch: int = 128, pad: int = 0, size: int | None = None, mirror: bool = True,
                 steps: int | None = None, device: str | torch.device = "cpu") -> None:
        if images.ndim != 4 or (labels is not None and len(labels) != len(images)):
            raise DataError(f"images {images.shape} and {0 if labels is None else len(labels)} labels do not fit")
        if not 1 <= batch <= len(images):
            raise DataError(f"{len(images)} images do not fill a batch of {batch}", fix="give more images")
        self.images = functional.pad(torch.from_numpy(images).to(device), (pad,) * 4)
        self.labels = None if labels is None else torch.from_numpy(labels).to(device)
        self.normalise, self.batch, self.mirror, self.steps = normalise, batch, mirror, steps
        self.size = (images.shape[2], images.shape[3]) if size is None else (size, size)
        self.room = [full - part for full, part in zip(self.images.shape[2:], self.size, strict=True)]
        if min(self.room) < 0:
            raise DataError(f"images of {images.shape[2:]} pixels are smaller than crops of {size}")

    def __len__(self) -> int:
        full = len(self.images) // self.batch
        return full if self.steps is None else min(full, self.steps)

    def __iter__(self) -> Iterator[Any]:
        for index in torch.randperm(len(self.images)).split(self.batch)[: len(self)]:
            pixels = self.normalise(self._crops(index))
            yield pixels if self.labels is None else (pixels, self.labels[index.to(self.labels.device)])

    def _crops(self, index: torch.Tensor) -> torch.Tensor:
        """The pixels of the images ``index``, each from its own corner on, gathered in one go."""
        tops, lefts = (torch.randint(0, room + 1, (len(index), 1)) for room in self.room)
        flips = torch.rand(len(index), 1) < (0.5 if self.mirror else 0.0)
        height, width = self.size
        across = torch.arange(width)
        rows, columns = tops + torch.arange(height), lefts + torch.where(flips, width - 1 - across, across)
        index, rows, columns = (part.to(self.images.device) for part in (index, rows, columns))
        lines = self.images[index[:, None], :, rows].transpose(1, 2)  # whole lines first: long copies
        return lines.gather(3, columns[:, None, None].expand(*lines.shape[:3], width))
