"""YOLOX in numpy: letterbox, grids to boxes, non-maximum suppression, average precision at an overlap of one half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE, STRIDES = 416, (8, 16, 32)
Array = np.ndarray


def letterbox(image: Image.Image, side: int = SIDE) -> tuple[Array, float]:
    """The photo in the upper left of a grey square, BGR 0-255, ``[1, 3, side, side]``; and how much it was scaled."""
    image = image.convert("RGB")
    scale = side / max(image.size)
    size = tuple(max(1, int(length * scale)) for length in image.size)
    canvas = np.full((side, side, 3), 114, np.float32)
    canvas[:size[1], :size[0]] = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1)[None]), scale


def decode(raw: Array, side: int = SIDE) -> Array:
    """``[cells, 5 + classes]`` on grids to x0, y0, x1, y1 in pixels of the square, then objectness and classes."""
    cells = [side // stride for stride in STRIDES]
    grid = np.concatenate([np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) for n in cells])
    stride = np.concatenate([np.full((n * n, 1), s) for n, s in zip(cells, STRIDES, strict=True)])
    centre, half = (raw[:, :2] + grid) * stride, np.exp(raw[:, 2:4]) * stride / 2
    return np.concatenate([centre - half, centre + half, raw[:, 4:]], axis=1)


def overlap(box: Array, others: Array) -> Array:
    """Intersection over union of one box with many."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:4], others[:, 2:4])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:4] - others[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    return both / np.maximum(areas - both, 1e-9)


def detect(raw: Array, confidence: float = 0.01, most_overlap: float = 0.65) -> Array:
    """``[boxes, 6]``: x0, y0, x1, y1, score, class, the most certain first; suppressed class by class."""
    rows = decode(raw)
    scores = rows[:, 4:5] * rows[:, 5:]
    kind = scores.argmax(axis=1)
    score = scores[np.arange(len(rows)), kind]
    keep = score > confidence
    boxes = np.column_stack([rows[keep, :4], score[keep], kind[keep]])
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    picked = []
    while len(boxes):
        picked.append(boxes[0])
        same = (boxes[1:, 5] == boxes[0, 5]) & (overlap(boxes[0], boxes[1:]) > most_overlap)
        boxes = boxes[1:][~same]
    return np.array(picked).reshape(-1, 6)


def matching(found: Array, expected: Array, least_overlap: float = 0.99) -> int:
    """How many of ``expected`` have a box of the same class in the same place in ``found``, one each."""
    free = found.copy()
    count = 0
    for box in expected:
        fits = np.flatnonzero((free[:, 5] == box[5]) & (overlap(box, free) >= least_overlap))
        if len(fits):
            free = np.delete(free, fits[0], axis=0)
            count += 1
    return count


def average_precision(detections: Sequence[Array], truth: Sequence[Array]) -> float:
    """Mean over classes of the area under precision and recall; ``truth`` is x0, y0, x1, y1, class."""
    classes = sorted({int(k) for boxes in truth for k in boxes[:, 4]})
    return float(np.mean([_class_precision(k, detections, truth) for k in classes]))


def _class_precision(kind: int, detections: Sequence[Array], truth: Sequence[Array]) -> float:
    rows = [(box[4], image, box) for image, boxes in enumerate(detections) for box in boxes if box[5] == kind]
    wanted = {image: boxes[boxes[:, 4] == kind] for image, boxes in enumerate(truth)}
    taken = {image: np.zeros(len(boxes), bool) for image, boxes in wanted.items()}
    hits = []
    for _, image, box in sorted(rows, key=lambda row: -row[0]):
        overlaps = np.where(taken[image], 0, overlap(box, wanted[image]))
        best = int(overlaps.argmax()) if len(overlaps) else -1
        hit = best >= 0 and overlaps[best] >= 0.5
        if hit:
            taken[image][best] = True
        hits.append(hit)
    total = sum(len(boxes) for boxes in wanted.values())
    right = np.cumsum(hits)
    recall = np.concatenate([[0], right / total])
    precision = np.concatenate([right / np.arange(1, len(hits) + 1), [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision[:-1]))
