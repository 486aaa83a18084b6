"""YOLOX-Nano as a network to prune: outputs that weigh what detections depend on, and scenes of several objects.

Most numbers that YOLOX puts out belong to places without an object, and squared differences see little else. So its
scores are compared as angles ``asin(sqrt(score))``, in which a change counts as much as it makes an answer less likely
(the Fisher information of a yes or no is constant there), and its boxes weighted by the root of how sure it is that
there is one. Scenes are four photos side by side, at the scale they were taken at: photos of one object each teach
little about crowded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import detection
from blockpunch.data import list_images, open_image, yolo_boxes
from blockpunch.pruning.graph_module import GraphModule

LEAST = 1e-6
"""Scores nearer to 0 or 1 count as that near: the angle's slope has no bound there."""


class Detector(GraphModule):
    """Gives (angles of the scores ``[N, cells, classes]``, weighted boxes ``[N, cells, 4]``) of YOLOX's raw grids."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = super().forward(*inputs)
        sure = raw[..., 4:5]
        scores = (sure * raw[..., 5:]).clamp(LEAST, 1 - LEAST)
        return scores.sqrt().asin(), raw[..., :4] * sure.detach().sqrt()


class Raw(nn.Module):
    """What ``detector`` puts out before it is weighed: what is exported and scored."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return GraphModule.forward(self.detector, x)


def scene(photos: np.ndarray, generator: np.random.Generator, side: int = detection.SIDE) -> np.ndarray:
    """Four of ``photos`` ``[n, s, s, 3]`` (RGB bytes) as one, half mirrored, cropped: BGR ``[3, side, side]``."""
    four = [photos[i][:, ::-1] if generator.random() < 0.5 else photos[i]
            for i in generator.choice(len(photos), 4, replace=False)]
    whole = np.concatenate([np.concatenate(four[:2], axis=1), np.concatenate(four[2:], axis=1)])
    top, left = generator.integers(0, whole.shape[0] - side + 1, 2)
    return whole[top:top + side, left:left + side, ::-1].transpose(2, 0, 1).astype(np.float32)


def scenes(photos: np.ndarray, count: int, seed: int = 0) -> torch.Tensor:
    """``[count, 3, side, side]``, as the network takes them."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([scene(photos, generator) for _ in range(count)]))


class Scenes:
    """Batches of new scenes, as many in an epoch as there are photos; chance comes from torch's generator."""

    def __init__(self, photos: np.ndarray, batch: int = 8) -> None:
        self.photos, self.batch = photos, batch

    def __len__(self) -> int:
        return len(self.photos) // self.batch

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(len(self)):
            yield scenes(self.photos, self.batch, int(torch.randint(2**31, ())))


def ap50(coco: Path) -> Callable[[nn.Module], float]:
    """Average precision in percent at an overlap of one half, on all photos of the YOLO-format folder ``coco``."""
    def score(model: nn.Module) -> float:
        found, truth, raw = [], [], Raw(model).eval()
        for path in list_images(coco / "images"):
            x, scale = detection.letterbox(image := open_image(path))
            with torch.no_grad():
                found.append(detection.detect(raw(torch.from_numpy(x))[0].numpy()))
            file = coco / "labels" / f"{path.stem}.txt"
            rows = yolo_boxes(file) if file.exists() else np.zeros((0, 5), np.float32)
            size = np.array([*image.size, *image.size]) * scale
            corners = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2], axis=1) * size
            truth.append(np.column_stack([corners, rows[:, 0]]))
        return 100 * detection.average_precision(found, truth)
    return score
