"""Photos to distil on, held in memory as bytes, and the random crops that training sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blockpunch.data import Pixels, Preprocess
from blockpunch.pruning.dataset import crops, training_pixels

__all__ = ["Photos", "batches", "training_pixels"]


@dataclass
class Photos:
    """Unlabelled pixels ``[n, side, side, 3]`` to distil on; random crops of ``size`` are taken from them."""

    pixels: Pixels
    preprocess: Preprocess
    size: int
    source: str = "photos"


def batches(photos: Photos, size: int) -> Any:
    """Shuffled batches of ``size`` random crops, mirrored half of the time, for the recovery. Needs torch."""
    return crops(photos.pixels, None, photos.preprocess, photos.size, size)
