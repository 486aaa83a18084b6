"""Photos to distil on, held in memory as bytes, and the random crops that training sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import Pixels, Preprocess, spread
from blockpunch.measure.quality import Check
from blockpunch.pruning.dataset import crops, training_pixels

__all__ = ["Photos", "batches", "check_batches", "one_shot_photos", "photo_batches", "split_photos", "training_pixels"]

HELD_OUT = 400
"""Photos at most that plans are tried on."""


@dataclass
class Photos:
    """Unlabelled pixels ``[n, side, side, 3]`` to distil on; random crops of ``size`` are taken from them."""

    pixels: Pixels
    preprocess: Preprocess
    size: int
    source: str = "photos"

    def facts(self) -> list[Any]:
        """What tells these photos from others, as plain data."""
        return [self.size, list(self.pixels.shape), int(self.pixels.sum()), repr(self.preprocess)]

    def centres(self, numbers: Sequence[int], batch: int) -> Any:
        """The centres of some photos, as the network sees them when it is used, in batches. Needs torch."""
        import torch

        room = (self.pixels.shape[1] - self.size) // 2
        inner = self.pixels[np.asarray(numbers, np.int64), room:room + self.size, room:room + self.size]
        return torch.from_numpy(np.ascontiguousarray(self.preprocess.normalise(inner))).split(batch)


def one_shot_photos(size: int) -> int:
    """How many photos of ``size`` pixels one-shot pruning should see: 500 of 224 pixels, fewer of larger ones.

    More gain little, and all are held in memory.
    """
    return max(32, min(500, 500 * 224**2 // size**2))


def batches(photos: Photos, size: int) -> Any:
    """Shuffled batches of ``size`` random crops, mirrored half of the time, for the recovery. Needs torch."""
    return crops(photos.pixels, None, photos.preprocess, photos.size, size)


def photo_batches(paths: Sequence[Path], preprocess: Preprocess, size: int) -> Any:
    """Photos as the network sees them when it is used, in batches of ``size``. Needs torch.

    Raises:
        DataError: an unreadable photo.
    """
    import torch

    return torch.from_numpy(np.stack([preprocess(path) for path in paths])).split(size) if paths else []


def split_photos(count: int, size: int) -> tuple[list[int], list[int]]:
    """Numbers of the photos to fit on, of ``count`` with ``size`` pixels, and of those to try plans on, spread evenly.

    A fifth at least is held out, and what :func:`one_shot_photos` does not need, up to :data:`HELD_OUT`.
    """
    fit = spread(range(count), min(one_shot_photos(size), max(1, count * 4 // 5)))
    rest = sorted({*range(count)} - {*fit})
    return list(fit), list(spread(rest, HELD_OUT))


def check_batches(check: Check, size: int) -> Any:
    """The images of a check, in batches of ``size``. Needs torch."""
    import torch

    return torch.from_numpy(np.stack([check.image(i) for i in range(len(check))])).split(size)
