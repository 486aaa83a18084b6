"""What layer-wise pruning knows of a layer: second moments of its inputs, gathered over a few hundred images.

With ``X`` the inputs of a layer as columns (one per output position, the receptive field of it) and ``W`` its weight,
the squared error of the layer's output is a quadratic in ``W`` with Hessian ``2 X X^T``, which all filters share.
Everything is centred: the mean of an output goes into the bias or the batch-norm behind the layer, so that it costs
nothing (``centred=False`` for layers that have neither).
"""

from __future__ import annotations

import torch
from torch import nn

from blockpunch.errors import DataError

POSITIONS = 100
"""Most output positions per image that are looked at, chosen at random: neighbours say nearly the same."""
SAMPLES = 100
"""Samples for each column of a filter that are enough: depthwise layers have few columns."""
LARGEST = 10_000
"""Columns (channels x kernel positions) above which a layer's moments are not worth their memory."""


def grouped(layer: nn.Module) -> torch.Tensor:
    """A copy of the weight of a ``Conv2d`` or ``Linear`` as ``[conv groups, filters, columns]``."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach().float().clone()
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def is_plain(layer: nn.Module) -> bool:
    """Whether :func:`input_columns` can tell what the filters of ``layer`` are multiplied with."""
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def positions(layer: nn.Module, images: int) -> int:
    """Output positions of an image to look at, where there are ``images`` of them."""
    columns = int(layer.weight[0].numel())
    return int(min(POSITIONS, -(-SAMPLES * columns // max(1, images))))


def input_columns(layer: nn.Module, x: torch.Tensor, generator: torch.Generator, most: int) -> torch.Tensor:
    """What the filters of a layer are multiplied with: ``[conv groups, columns, samples]``.

    Args:
        layer: ``Linear``, or ``Conv2d`` padded with zeros.
        x: its input; gathered fastest where it is channels-last.
        generator: chooses the output positions, the same in all images of the batch.
        most: output positions per image, where there are more.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    assert isinstance(layer, nn.Conv2d)
    (top, left), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    height, width = layer.kernel_size
    x = nn.functional.pad(x, (left, left, top, top)) if top or left else x
    rows = (x.shape[2] - gap_y * (height - 1) - 1) // step_y + 1
    across = (x.shape[3] - gap_x * (width - 1) - 1) // step_x + 1
    chosen = torch.randperm(rows * across, generator=generator)[:most]
    corners = chosen // across * step_y * x.shape[3] + chosen % across * step_x
    taps = torch.arange(height)[:, None] * gap_y * x.shape[3] + torch.arange(width) * gap_x
    pixels = (corners[:, None] + taps.flatten()).flatten().to(x.device)
    rows_of_channels = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, pixels)
    samples = rows_of_channels.reshape(-1, height * width, layer.groups, x.shape[1] // layer.groups)
    return samples.permute(2, 3, 1, 0).reshape(layer.groups, -1, len(samples))  # a view of 1x1 kernels' samples


class Moments:
    """Sums over samples ``x`` (inputs in the pruned network) and ``d`` (in the dense one) of one layer.

    Args:
        weight: the dense weight as ``[conv groups, filters, columns]``.
        centred: leave the means out.
    """

    def __init__(self, weight: torch.Tensor, *, centred: bool = True) -> None:
        groups, _, columns = weight.shape
        self.weight, self.centred, self.count = weight, centred, 0
        self._shift: torch.Tensor | None = None
        device = weight.device
        self._gram = torch.zeros(groups, columns, columns, device=device)
        self._cross: torch.Tensor | None = None
        self._x, self._d = (torch.zeros(groups, columns, dtype=torch.float64, device=device) for _ in range(2))
        self._y, self._energy = (torch.zeros(weight.shape[:2], dtype=torch.float64, device=device) for _ in range(2))

    def add(self, x: torch.Tensor, d: torch.Tensor | None = None) -> None:
        """Take in samples ``[conv groups, columns, samples]``; without ``d`` the dense network feeds the same."""
        if self._shift is None:  # near the mean, so that the sums lose no digits
            self._shift = x.mean(dim=2, keepdim=True) if self.centred else torch.zeros_like(x[:, :, :1])
        same = d is None
        x = x - self._shift
        d = x if d is None else d - self._shift
        wanted = self.weight @ d
        self._gram.baddbmm_(x, x.transpose(1, 2))
        if not same:
            cross = wanted @ x.transpose(1, 2)
            self._cross = cross if self._cross is None else self._cross.add_(cross)
        self._x += x.sum(dim=2)
        self._d += d.sum(dim=2)
        self._y += wanted.sum(dim=2)
        self._energy += wanted.square().sum(dim=2, dtype=torch.float64)
        self.count += x.shape[2]

    def check(self, layer: str) -> None:
        """Nothing where all inputs were finite.

        Raises:
            DataError: names the layer.
        """
        if not bool(torch.isfinite(self._energy).all() and torch.isfinite(self._gram).all()):
            raise DataError("its inputs become NaN or infinite on these images", where=f"layer '{layer}'",
                            fix="check how the images are normalised")

    @property
    def gram(self) -> torch.Tensor:
        """Mean of ``x x^T``: ``[conv groups, columns, columns]``."""
        gram = self._gram / self.count
        if self.centred:
            mean = (self._x / self.count).float()
            gram -= mean[:, :, None] * mean[:, None, :]
        return gram

    @property
    def target(self) -> torch.Tensor:
        """Mean of ``(W d) x^T``: ``[conv groups, filters, columns]``."""
        if self._cross is None:
            return self.weight @ self.gram
        target = self._cross / self.count
        if self.centred:
            target -= (self._y / self.count)[:, :, None].float() * (self._x / self.count)[:, None, :].float()
        return target

    @property
    def energy(self) -> torch.Tensor:
        """Mean square of the dense output (its variance where centred): ``[conv groups, filters]``."""
        energy = self._energy / self.count
        return energy - (self._y / self.count).square() if self.centred else energy

    def error(self, weight: torch.Tensor) -> float:
        """Squared error of the output with ``weight`` ``[conv groups, filters, columns]``, over its energy."""
        energy = float(self.energy.sum())
        change = float((weight * (weight @ self.gram - 2 * self.target)).sum(dtype=torch.float64))
        return max(0.0, energy + change) / max(energy, 1e-30)

    def mean_shift(self, weight: torch.Tensor) -> torch.Tensor:
        """What the new ``weight`` lacks in the mean of the output ``[conv groups, filters]``: goes into a bias."""
        assert self._shift is not None
        shift = self._shift[:, :, 0].double()
        old = torch.einsum("gfc,gc->gf", self.weight.double(), shift + self._d / self.count)
        return old - torch.einsum("gfc,gc->gf", weight.double(), shift + self._x / self.count)
