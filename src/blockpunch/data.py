"""Photos and labels in the usual formats, as numpy arrays: folders, class folders, CSV, CIFAR batches, boxes.

Images become float32 arrays ``[3, height, width]`` through a :class:`Preprocess`. Needs pillow (extra ``images``) to
read image files; everything else is numpy.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.errors import DataError, MissingExtraError

Pixels = npt.NDArray[np.uint8]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# Ordinary photographs inside the package scikit-image, in the order of use; the last ones are held out for comparison.
SAMPLE_NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png", "grass.png",
                "gravel.png", "brick.png", "coins.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg")


def data_root() -> Path | None:
    """The folder of data sets: ``$BLOCKPUNCH_DATA``, else ``../shared/data`` beside a source checkout, else None.

    Raises:
        DataError: the environment variable names something that is not a folder.
    """
    named = os.environ.get("BLOCKPUNCH_DATA")
    if named:
        if not Path(named).is_dir():
            raise DataError("not a folder", where=f"BLOCKPUNCH_DATA={named}", fix="unset it, or name the data folder")
        return Path(named)
    project = Path(__file__).resolve().parents[2]
    beside = project.parent / "shared" / "data"
    return beside if (project / "pyproject.toml").is_file() and beside.is_dir() else None


@dataclass(frozen=True)
class Preprocess:
    """How a photo becomes an input: resize the shorter side, crop the centre, ``(pixel * scale - mean) / std``.

    ``resize`` and ``crop`` are in pixels (None: leave as it is); ``mean`` and ``std`` belong to the channels in the
    network's own order, which ``bgr`` turns around.
    """

    resize: int | None = 256
    crop: int | None = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    bgr: bool = False
    bilinear: bool = False

    @staticmethod
    def named(name: str, size: int = 224) -> Preprocess:
        """A usual recipe for inputs of ``size`` pixels: see :data:`PREPROCESS` for the names.

        Raises:
            DataError: no recipe of that name.
        """
        if name not in PREPROCESS:
            raise DataError(f"no preprocessing named '{name}'", fix=f"one of: {', '.join(PREPROCESS)}")
        return Preprocess(resize=round(size * 8 / 7), crop=size, **PREPROCESS[name])

    def pixels(self, image: Any) -> Pixels:
        """The resized and cropped photo as ``[height, width, 3]`` bytes in RGB; ``image`` is a pillow image."""
        image_module = _pillow()
        image = image.convert("RGB")
        if self.resize is not None and min(image.size) != self.resize:
            factor = self.resize / min(image.size)
            size = tuple(max(1, round(side * factor)) for side in image.size)
            resampling = image_module.Resampling
            image = image.resize(size, resampling.BILINEAR if self.bilinear else resampling.BICUBIC)
        if self.crop is not None:
            if min(image.size) < self.crop:
                raise DataError(f"a photo of {image.size[0]} x {image.size[1]} pixels is smaller than the crop of "
                                f"{self.crop}", fix="set resize to at least the crop")
            left, top = ((side - self.crop) // 2 for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return np.asarray(image, dtype=np.uint8)

    def normalise(self, pixels: Pixels) -> Images:
        """``[..., height, width, 3]`` bytes in RGB -> ``[..., 3, height, width]`` float32 ready for the network."""
        order = pixels[..., ::-1] if self.bgr else pixels
        scaled = (order.astype(np.float32) * np.float32(self.scale) - np.asarray(self.mean, np.float32))
        return np.ascontiguousarray(np.moveaxis(scaled / np.asarray(self.std, np.float32), -1, -3), dtype=np.float32)

    def __call__(self, path: Path) -> Images:
        """Read one photo: ``[3, height, width]``. Raises DataError when it cannot be read."""
        return self.normalise(self.pixels(open_image(path)))


#: Usual recipes: channel statistics of ImageNet, -1..1, EfficientNet-Lite's, Caffe's, 0..1 and 0..255.
PREPROCESS: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "inception": {"mean": (1.0, 1.0, 1.0), "std": (1.0, 1.0, 1.0), "scale": 1 / 127.5},
    "efficientnet-lite": {"mean": (127.0, 127.0, 127.0), "std": (128.0, 128.0, 128.0), "scale": 1.0},
    "caffe": {"mean": (103.939, 116.779, 123.68), "std": (1.0, 1.0, 1.0), "scale": 1.0, "bgr": True},
    "unit": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "bytes": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1.0},
}


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "images", "reading photos") from None
    return Image


def open_image(path: Path) -> Any:
    """A pillow image, fully decoded. Raises DataError for a missing, damaged or oversized file."""
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            image.load()
            return image.copy()
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise DataError(f"not a readable image ({error})", where=str(path), fix="remove or replace the file") from None


def list_images(folder: Path, *, limit: int | None = None) -> list[Path]:
    """The image files under ``folder``, sorted by path; with ``limit``, that many spread evenly over the list.

    Raises:
        DataError: not a folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), fix="name a folder of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError("no image in the folder", where=str(folder),
                        fix=f"image files end in {', '.join(sorted(SUFFIXES))}")
    return spread(paths, limit)


def spread(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most ``limit`` of ``items``, evenly spaced, so that a limit never means "the first class only"."""
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise DataError(f"a limit of {limit} images leaves none", fix="a limit of at least 1")
    return [items[i * len(items) // limit] for i in range(limit)]


def load_images(paths: Sequence[Path], preprocess: Callable[[Path], Images],
                progress: Callable[[int, int], None] | None = None) -> Images:
    """All photos as one array ``[count, 3, height, width]``; ``progress(done, total)`` is called after each.

    Raises:
        DataError: an unreadable photo, or photos that come out in different sizes.
    """
    if not paths:
        raise DataError("no images given", fix="name at least one")
    result: Images | None = None
    for i, path in enumerate(paths):
        image = preprocess(path)
        if result is None:
            result = np.empty((len(paths), *image.shape), np.float32)
        elif image.shape != result.shape[1:]:
            raise DataError(f"comes out as {image.shape}, the photos before it as {result.shape[1:]}", where=str(path),
                            fix="give the preprocessing a crop")
        result[i] = image
        if progress is not None:
            progress(i + 1, len(paths))
    assert result is not None
    return result


def batches(paths: Sequence[Path], preprocess: Callable[[Path], Images], size: int) -> Iterator[Images]:
    """The photos in order, ``[up to size, 3, height, width]`` at a time."""
    for start in range(0, len(paths), size):
        yield load_images(paths[start:start + size], preprocess)


def class_folders(folder: Path, *, limit: int | None = None) -> tuple[list[Path], Labels, list[str]]:
    """Photos in one sub-folder per class: paths, labels (index of the folder's name in sorted order), class names."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), fix="name a folder with one sub-folder per class")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if not names:
        raise DataError("no class folders in it", where=str(folder), fix="put the photos of each class in a sub-folder")
    found = [(path, label) for label, name in enumerate(names) for path in list_images(folder / name)]
    chosen = spread(found, limit)
    return [p for p, _ in chosen], np.array([n for _, n in chosen], np.int64), names


def labelled_images(folder: Path, *, classes: int | None = None, limit: int | None = None) -> tuple[list[Path], Labels]:
    """Photos listed in ``folder/labels.csv`` (columns file, label); files lie in ``folder/images`` or ``folder``.

    Raises:
        DataError: no such list, a bad row, a missing photo, or a label outside ``0 .. classes - 1``.
    """
    table = folder / "labels.csv"
    if not table.is_file():
        raise DataError("no labels.csv", where=str(folder), fix="write a CSV file with the columns file,label")
    base = folder / "images" if (folder / "images").is_dir() else folder
    paths, labels = [], []
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        try:
            name, label = row[0], int(row[1])
        except (IndexError, ValueError):
            raise DataError(f"'{','.join(row)}' is not file,label", where=f"{table}, line {line}") from None
        if label < 0 or (classes is not None and label >= classes):
            raise DataError(f"label {label} is out of range", where=f"{table}, line {line}",
                            fix="labels are 0 or more" if classes is None else f"labels are 0 .. {classes - 1}")
        if not (base / name).is_file():
            raise DataError("the photo does not exist", where=f"{table}, line {line}: {base / name}")
        paths.append(base / name)
        labels.append(label)
    if not paths:
        raise DataError("lists no photo", where=str(table))
    keep = spread(range(len(paths)), limit)
    return [paths[i] for i in keep], np.array([labels[i] for i in keep], np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles that CIFAR comes in, and nothing that could run code."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in ("numpy", "_codecs") or name not in self.ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}")
        return super().find_class(module, name)


def cifar10(folder: Path, split: str) -> tuple[Pixels, Labels]:
    """CIFAR-10's official ``cifar-10-batches-py`` (that folder or the one above): images ``[n, 3, 32, 32]``, labels.

    ``split`` is ``train`` or ``test``. Raises DataError for missing or damaged files.
    """
    base = folder / "cifar-10-batches-py" if (folder / "cifar-10-batches-py").is_dir() else folder
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}.get(split)
    if files is None:
        raise DataError(f"no split '{split}'", fix="train or test")
    images, labels = [], []
    for name in files:
        try:
            with (base / name).open("rb") as stream:
                batch = _ArraysOnly(stream, encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
            numbers = np.asarray(batch[b"labels"], np.int64)
        except FileNotFoundError:
            raise DataError("no such file", where=str(base / name), fix="unpack cifar-10-python.tar.gz here") from None
        except Exception as error:  # a pickle that is not what it should be can fail in any way
            raise DataError(f"not a CIFAR-10 batch ({error})", where=str(base / name)) from None
        if len(pixels) != len(numbers) or numbers.min(initial=0) < 0 or numbers.max(initial=0) > 9:
            raise DataError("images and labels do not fit together", where=str(base / name))
        images.append(pixels)
        labels.append(numbers)
    return np.concatenate(images), np.concatenate(labels)


def yolo_boxes(path: Path, *, classes: int | None = None) -> Images:
    """One label file in YOLO's format: rows of class, x, y, width, height (centre, relative) as ``[boxes, 5]``."""
    try:
        rows = [[float(field) for field in line.split()] for line in path.read_text().splitlines() if line.strip()]
        boxes = np.array(rows, np.float32).reshape(-1, 5)
    except (OSError, ValueError) as error:
        raise DataError(f"not a list of YOLO boxes ({error})", where=str(path)) from None
    if len(boxes) and (boxes[:, 0].min() < 0 or (classes is not None and boxes[:, 0].max() >= classes)):
        raise DataError("a class is out of range", where=str(path), fix=f"classes are 0 .. {(classes or 1) - 1}")
    if len(boxes) and (boxes[:, 1:].min() < 0 or boxes[:, 1:].max() > 1):
        raise DataError("a box lies outside the photo", where=str(path), fix="boxes are relative, from 0 to 1")
    return boxes


def coco_boxes(path: Path) -> dict[str, Images]:
    """A COCO annotation file: photo's file name -> ``[boxes, 5]`` as :func:`yolo_boxes` gives them.

    Classes are numbered from 0 in the order of the categories' ids. Raises DataError for anything else than that.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        photos = {image["id"]: image for image in data["images"]}
        classes = {number: i for i, number in enumerate(sorted(c["id"] for c in data["categories"]))}
        rows: dict[str, list[list[float]]] = {image["file_name"]: [] for image in photos.values()}
        for entry in data["annotations"]:
            photo, (left, top, width, height) = photos[entry["image_id"]], entry["bbox"]
            across, down = photo["width"], photo["height"]
            rows[photo["file_name"]].append([classes[entry["category_id"]], (left + width / 2) / across,
                                             (top + height / 2) / down, width / across, height / down])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DataError(f"not COCO annotations ({type(error).__name__}: {error})", where=str(path)) from None
    return {name: np.array(boxes, np.float32).reshape(-1, 5) for name, boxes in rows.items()}


def sample_photos() -> list[Path]:
    """The photos inside the installed package scikit-image, so that a demonstration needs no data set."""
    spec = importlib.util.find_spec("skimage")
    folders = [Path(p) / "data" for p in (spec.submodule_search_locations or [])] if spec else []
    found = [folder / name for folder in folders for name in SAMPLE_NAMES if (folder / name).is_file()]
    if not found:
        raise MissingExtraError("scikit-image", "demo", "using sample photos")
    return found


def patches(photos: Iterable[Path], count: int, size: int, *, seed: int = 0) -> Pixels:
    """Random square crops, a third of the photo to all of it, resized and mirrored: ``[count, size, size, 3]``."""
    image_module = _pillow()
    images = [open_image(path).convert("RGB") for path in photos]
    if not images:
        raise DataError("no photos to crop")
    rng = np.random.default_rng(seed)
    result = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        image = images[i % len(images)]
        side = int(min(image.size) * rng.uniform(1 / 3, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        crop = image.resize((size, size), image_module.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        pixels = np.asarray(crop, np.uint8)
        result[i] = pixels[:, ::-1] if rng.random() < 0.5 else pixels
    return result
