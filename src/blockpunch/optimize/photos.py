"""Photos to distil on, held in memory as bytes, and the random crops that training sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import Pixels, Preprocess, open_image
from blockpunch.errors import DataError


@dataclass
class Photos:
    """Unlabelled pixels ``[n, side, side, 3]`` to distil on; random crops of ``size`` are taken from them."""

    pixels: Pixels
    preprocess: Preprocess
    size: int
    source: str = "photos"


def training_pixels(paths: Sequence[Path], size: int, progress: Callable[[int, int], None] | None = None) -> Pixels:
    """Photos resized and cropped to an eighth more than ``size``, so that random crops have room: ``[n, s, s, 3]``.

    Raises:
        DataError: an unreadable photo.
    """
    side = round(size * 8 / 7)
    room = Preprocess(resize=side, crop=side)
    result = np.empty((len(paths), side, side, 3), np.uint8)
    for i, path in enumerate(paths):
        result[i] = room.pixels(open_image(path))
        if progress is not None:
            progress(i + 1, len(paths))
    return result


class Crops:
    """Batches of random crops, mirrored half of the time, from numpy's global generator (which recovery seeds)."""

    def __init__(self, photos: Photos, batch: int) -> None:
        if photos.size > min(photos.pixels.shape[1:3]):
            raise DataError(f"photos of {photos.pixels.shape[1:3]} pixels are smaller than the input of {photos.size}")
        self.photos, self.batch = photos, min(batch, len(photos.pixels))

    def __len__(self) -> int:
        return len(self.photos.pixels) // self.batch

    def __iter__(self) -> Iterator[Any]:
        import torch

        pixels, size = self.photos.pixels, self.photos.size
        order = np.random.permutation(len(pixels))  # noqa: NPY002 - recovery restores this generator's state
        room = [side - size for side in pixels.shape[1:3]]
        for i in range(len(self)):
            crops = []
            for index in order[i * self.batch:(i + 1) * self.batch]:
                top, left, mirror = (int(np.random.randint(0, n + 1)) for n in (*room, 1))  # noqa: NPY002
                crop = pixels[index, top:top + size, left:left + size]
                crops.append(crop[:, ::-1] if mirror else crop)
            yield torch.from_numpy(self.photos.preprocess.normalise(np.stack(crops)))
