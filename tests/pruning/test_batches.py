"""Augmented batches: each image once per epoch, crops of the padded image, labels beside them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from blockpunch.errors import DataError  # noqa: E402
from blockpunch.pruning.batches import ImageBatches  # noqa: E402


def test_each_image_comes_once_as_a_crop_of_the_padded_one():
    images = np.random.default_rng(0).integers(1, 255, (10, 3, 6, 7)).astype(np.uint8)
    batches = ImageBatches(images, np.arange(10), lambda pixels: pixels, batch=3, pad=2)
    torch.manual_seed(0)
    seen, mirrored, shifts = [], 0, set()
    for _ in range(20):
        epoch = list(batches)
        assert len(epoch) == len(batches) == 3 and len({int(i) for _, labels in epoch for i in labels}) == 9
        for crops, labels in epoch:
            for crop, label in zip(crops.numpy(), labels.tolist(), strict=True):
                padded = np.pad(images[label], ((0, 0), (2, 2), (2, 2)))
                places = [(top, left, flip) for top in range(5) for left in range(5) for flip in (False, True)
                          if np.array_equal(padded[:, top:top + 6, left:left + 7],
                                            crop[:, :, ::-1] if flip else crop)]
                assert len(places) == 1
                seen.append(label)
                mirrored += places[0][2]
                shifts.add(places[0][:2])
    assert set(seen) == set(range(10)) and 60 < mirrored < 120 and len(shifts) == 25


def test_without_labels_and_faults():
    images = np.zeros((4, 3, 8, 8), np.uint8)
    assert next(iter(ImageBatches(images, None, lambda pixels: pixels, batch=2, size=5))).shape == (2, 3, 5, 5)
    for arguments in ({"batch": 5}, {"size": 9}):
        with pytest.raises(DataError):
            ImageBatches(images, None, lambda pixels: pixels, **{"batch": 2, **arguments})
    with pytest.raises(DataError, match="do not fit"):
        ImageBatches(images, np.zeros(3, np.int64), lambda pixels: pixels, batch=2)
