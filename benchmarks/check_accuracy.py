"""Compiled dense networks against the original ones on real photos: the same classes, the same boxes.

MobileNetV2 and EfficientNet-Lite0 on ``imagenet_val`` (top-1 of both engines), YOLOX-Nano on ``coco128`` (boxes of both
engines, and their average precision). Fails when more than two photos change their class, or a box is not there.

    python benchmarks/check_accuracy.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import blockpunch as bp
import detection
from blockpunch.data import Preprocess, data_root, labelled_images, list_images, open_image, yolo_boxes
from networks import export

MOST_CHANGED = 2  # photos that may change their class
Run = Callable[[np.ndarray], np.ndarray]


class Engines(NamedTuple):
    """The original in ONNX Runtime and the compiled network: from one input to one output."""

    original: Run
    compiled: Run


def engines(path: Path, target: str, threads: int) -> Engines:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    ours = bp.Session(bp.compile(path, target=target, threads=threads), threads=threads)
    return Engines(lambda x: session.run(None, {name: x})[0], lambda x: ours.run(x))


def classify(title: str, path: Path, preprocess: Preprocess, first: int, root: Path, arguments: Any) -> bool:
    """Top-1 of both engines on every labelled photo; ``first`` is the output of class 0. Whether they agree."""
    photos, labels = labelled_images(root / "imagenet_val", limit=arguments.limit)
    pair = engines(path, arguments.target, arguments.threads)
    classes = np.empty((2, len(photos)), np.int64)
    worst, start = 0.0, time.perf_counter()
    for i, photo in enumerate(photos):
        x = preprocess(photo)[None]
        outputs = [run(x).ravel() for run in pair]
        classes[:, i] = [output[first:].argmax() for output in outputs]
        worst = max(worst, float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()))
    right = (classes == labels).sum(axis=1)
    changed = int((classes[0] != classes[1]).sum())
    print(f"{title:<20} {len(photos):>5} photos  top-1 {right[0] / len(photos):.2%} ONNX Runtime  "
          f"{right[1] / len(photos):.2%} compiled  {changed} changed  difference {worst:.1e}  "
          f"{time.perf_counter() - start:.0f} s", flush=True)
    return changed <= MOST_CHANGED


def detect(title: str, path: Path, root: Path, arguments: Any) -> bool:
    """Boxes of both engines on every photo; whether they are the same."""
    photos = list_images(root / "coco128" / "images", limit=arguments.limit)
    pair = engines(path, arguments.target, arguments.threads)
    boxes: list[list[np.ndarray]] = [[], []]
    truth, same, total = [], 0, 0
    for photo in photos:
        image = open_image(photo)
        x, scale = detection.letterbox(image)
        found = [detection.detect(run(x)[0]) for run in pair]
        for kept, rows in zip(boxes, found, strict=True):
            kept.append(rows)
        same += detection.matching(found[1], found[0])
        total += max(len(found[0]), len(found[1]))
        labels = root / "coco128" / "labels" / f"{photo.stem}.txt"
        rows = yolo_boxes(labels) if labels.exists() else np.zeros((0, 5), np.float32)
        size = np.array([*image.size, *image.size]) * scale
        corners = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2], axis=1) * size
        truth.append(np.column_stack([corners, rows[:, 0]]))
    precision = [detection.average_precision(found, truth) for found in boxes]
    print(f"{title:<20} {len(photos):>5} photos  AP50 {precision[0]:.4f} ONNX Runtime  {precision[1]:.4f} compiled  "
          f"{same} of {total} boxes the same", flush=True)
    return total - same <= total // 2000  # a score that lies on the threshold may fall to either side


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="host")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="photos per network (default: all)")
    arguments = parser.parse_args()
    root = data_root()
    if root is None:
        print("needs the photos: set BLOCKPUNCH_DATA", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        lite = export("efficientnet-lite0", Path(temporary) / "lite0.onnx")
        mobilenet = Preprocess(resize=224, crop=224, mean=(1, 1, 1), std=(1, 1, 1), scale=1 / 127.5, bilinear=True)
        agree = [
            classify("MobileNetV2", root / "models" / "mobilenet_v2_1.0_224.onnx", mobilenet, 1, root, arguments),
            classify("EfficientNet-Lite0", lite, Preprocess.named("efficientnet-lite"), 0, root, arguments),
            detect("YOLOX-Nano", root / "models" / "yolox_nano.onnx", root, arguments),
        ]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
