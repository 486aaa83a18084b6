"""Photos to distil on, held in memory as bytes, and the random crops that training sees of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import Pixels, Preprocess, open_image


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


def batches(photos: Photos, size: int) -> Any:
    """Shuffled batches of ``size`` random crops, mirrored half of the time, for the recovery. Needs torch."""
    import torch

    from blockpunch.pruning.batches import ImageBatches

    recipe = photos.preprocess
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (recipe.mean, recipe.std))

    def normalise(pixels: Any) -> Any:
        ordered = pixels.flip(1) if recipe.bgr else pixels
        return (ordered.float() * recipe.scale - mean) / std

    images = np.ascontiguousarray(photos.pixels.transpose(0, 3, 1, 2))
    return ImageBatches(images, None, normalise, batch=min(size, len(images)), size=photos.size)
