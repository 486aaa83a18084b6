"""Data sets to train on, as they lie on disk: CIFAR batches, class folders, YOLO-format detection data, photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockpunch.data import (
    Labels,
    Pixels,
    Preprocess,
    cifar10,
    class_folders,
    list_images,
    open_image,
    spread,
    yolo_boxes,
)
from blockpunch.errors import DataError

if TYPE_CHECKING:
    from blockpunch.pruning.batches import ImageBatches

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingSet:
    """Images in memory, with labels where the data has a class for each.

    Args:
        pixels: RGB bytes ``[n, side, side, 3]``.
        labels: class of each image ``[n]``; None: there are none, or none that are one class per image.
        classes: how many classes the labels have, 0 without labels.
        kind: what was found, in words.
        pad: pixels of zeros around each image before it is cropped.
    """

    pixels: Pixels
    labels: Labels | None
    classes: int
    kind: str
    pad: int = 0

    def batches(self, preprocess: Preprocess, size: int, batch: int, *, steps: int | None = None,
                device: str = "cpu") -> ImageBatches:
        """Shuffled batches of random crops of ``size``, mirrored half of the time; needs torch.

        ``steps`` limits the batches of an epoch; each then draws from all images anew. ``device`` keeps the images.
        """
        return crops(self.pixels, self.labels, preprocess, size, batch, pad=self.pad, steps=steps, device=device)


def load_training_set(folder: Path, size: int, *, limit: int | None = None,
                      progress: Progress | None = None) -> TrainingSet:
    """The data set in ``folder``, recognised by its layout, for a network that takes ``size`` pixels.

    - ``data_batch_1`` (there or in ``cifar-10-batches-py``): CIFAR-10;
    - ``images/`` and ``labels/``: detection data in YOLO's format, whose boxes are checked but not trained on;
    - sub-folders with images (there or in ``train/``): one class per folder, in the order of their names;
    - otherwise any images below it, without labels.

    Raises:
        DataError: no such folder, no images, an unreadable one, a bad label file, CIFAR for another size.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), fix="name a folder of images")
    if any((base / "data_batch_1").exists() for base in (folder, folder / "cifar-10-batches-py")):
        return _cifar(folder, size, limit)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return _yolo(folder, size, limit, progress)
    base = folder / "train" if (folder / "train").is_dir() else folder
    if any(item.is_dir() for item in base.iterdir()):
        paths, labels, names = class_folders(base, limit=limit)
        return TrainingSet(training_pixels(paths, size, progress), labels, len(names),
                           f"{len(paths)} images in {len(names)} class folders")
    paths = list_images(base, limit=limit)
    return TrainingSet(training_pixels(paths, size, progress), None, 0, f"{len(paths)} images without labels")


def _cifar(folder: Path, size: int, limit: int | None) -> TrainingSet:
    images, labels = cifar10(folder, "train")
    if size != images.shape[-1]:
        raise DataError(f"CIFAR-10 has images of {images.shape[-1]} pixels, the network takes {size}",
                        where=str(folder), fix="name a data set of larger images")
    keep = np.array(spread(range(len(images)), limit))
    pixels = np.ascontiguousarray(images[keep].transpose(0, 2, 3, 1))
    return TrainingSet(pixels, labels[keep], 10, f"{len(keep)} CIFAR-10 images", pad=4)


def _yolo(folder: Path, size: int, limit: int | None, progress: Progress | None) -> TrainingSet:
    paths = list_images(folder / "images", limit=limit)
    files = [folder / "labels" / path.relative_to(folder / "images").with_suffix(".txt") for path in paths]
    boxes = sum(len(yolo_boxes(file)) for file in files if file.exists())
    if boxes == 0:
        raise DataError("none of the images has a label file with boxes", where=str(folder / "labels"),
                        fix="labels/NAME.txt belongs to images/NAME.jpg")
    return TrainingSet(training_pixels(paths, size, progress), None, 0, f"{len(paths)} images with {boxes} boxes")


def training_pixels(paths: Sequence[Path], size: int, progress: Progress | None = None) -> Pixels:
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


def crops(pixels: Pixels, labels: Labels | None, preprocess: Preprocess, size: int, batch: int, *, pad: int = 0,
          steps: int | None = None, device: str = "cpu") -> ImageBatches:
    """Shuffled batches of random crops of ``pixels`` ``[n, side, side, 3]``; see :meth:`TrainingSet.batches`.

    ``device``: where the images are kept and augmented.
    """
    import torch

    from blockpunch.pruning.batches import ImageBatches

    mean, std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))

    def normalise(images: Any) -> Any:
        ordered = images.flip(1) if preprocess.bgr else images
        return (ordered.float() * preprocess.scale - mean) / std

    images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return ImageBatches(images, labels, normalise, batch=min(batch, len(images)), pad=pad, size=size, steps=steps,
                        device=device)
