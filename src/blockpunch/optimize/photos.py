"""Photos to distil on, held in memory as bytes, and the random crops that training sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.data import Pixels, Preprocess
from blockpunch.pruning.dataset import crops, training_pixels

__all__ = ["Photos", "batches", "one_shot_photos", "photo_batches", "training_pixels"]


@dataclass
class Photos:
    """Unlabelled pixels ``[n, side, side, 3]`` to distil on; random crops of ``size`` are taken from them."""

    pixels: Pixels
    preprocess: Preprocess
    size: int
    source: str = "photos"


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
