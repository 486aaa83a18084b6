"""The files that are measured: networks exported, pruned as a user would prune them, and compiled."""

from __future__ import annotations

from pathlib import Path

import networks
from blockpunch.build import compile as compile_model
from blockpunch.layers import LAST_LINEAR, kept_dense_by_default
from blockpunch.plan import Plan
from blockpunch.pruning import onnx_layers, prune_onnx

TITLES = {"resnet50": "ResNet-50 224", "vgg16": "VGG-16 224", "mobilenet-v2": "MobileNetV2 224",
          "vgg16-bn-32": "VGG-16-BN 32", "resnet18-32": "ResNet-18 32", "mobilenet-v2-32": "MobileNetV2 32",
          "yolov5s": "YOLOv5s-like 416"}
BLOCK_PUNCHED = "block-punched:8x4"


class Models:
    """Makes files in a folder; what is there is not made again.

    ``tune`` is the time in seconds for tuning each compilation.
    """

    def __init__(self, folder: Path, tune: float) -> None:
        self.folder, self.tune = folder, tune

    def dense(self, network: str, *, batch: int = 1, side: int | None = None) -> Path:
        """The network with random weights; they decide nothing about speed."""
        _, channels, height, _ = networks.NETWORKS[network].shape
        side = side or height
        path = self.folder / f"{network}-{batch}x{side}.onnx"
        return path if path.exists() else networks.export(network, path, (batch, channels, side, side))

    def pruned(self, source: Path, scheme: str, rate: float, *, last: bool = True) -> Path:
        """As ``blockpunch prune --scheme --only '*' --only LAST`` does: every layer but the first convolution and
        depthwise ones; without ``last``, which is what no ``--only`` gives, the last linear layer stays dense, too.
        """
        if rate <= 1:
            return source
        path = self.folder / f"{source.stem}-{scheme.replace(':', '-')}-{rate:g}.onnx"
        if not path.exists():
            layers = onnx_layers(source)
            asked = [name for name, why in kept_dense_by_default(layers).items() if why == LAST_LINEAR and last]
            prune_onnx(source, Plan.uniform(layers, scheme, rate, only=["*", *asked]), path)
        return path

    def compiled(self, source: Path, *, target: str = "host", threads: int = 1) -> Path:
        """As ``blockpunch compile --tune`` does."""
        path = self.folder / f"{source.stem}-{target}-{threads}.bp"
        if not path.exists():
            compile_model(source, target=target, threads=threads, tune_s=self.tune).save(path)
        return path
