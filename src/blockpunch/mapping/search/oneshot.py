"""How much a pruned network's answers differ from the dense one's: the loss by which candidates are judged.

The network is pruned in one shot, second-order, each layer making up for those before it, and asked about photos that
nothing was fitted to. Fewer photos to fit on judge nearly as well as many, in a fraction of the time; the last few
candidates are fitted on all of them. (Layers pruned once each and put together are faster still, but tell the best
candidates from others too poorly: what later layers make up for counts most.)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from blockpunch.data import spread
from blockpunch.errors import DataError
from blockpunch.mapping.search.executors import Cells
from blockpunch.plan import DENSE, LayerPlan, Plan
from blockpunch.pruning.allocator import memory_kept
from blockpunch.pruning.objectives import output_loss, tensors
from blockpunch.pruning.oneshot import prune_oneshot_
from blockpunch.pruning.torch_prune import module_layers

SHARE = 1 / 3
"""Of the batches to fit on that an evaluation in short takes, if nothing else is said."""


class OneShotLoss:
    """The divergence of a pruned network's answers from the dense network's, in nats where they are class scores.

    Other outputs are compared by their relative squared error.

    Args:
        model: dense; left as it is.
        images: batches to fit the pruned layers on, without labels; a few hundred photos.
        held_out: batches of other images, on which answers are compared.
        seed: of the choice of output positions.
        share: of the batches to fit on that an evaluation in short takes.

    Raises:
        DataError: no images.
    """

    def __init__(self, model: nn.Module, images: Sequence[torch.Tensor], held_out: Sequence[torch.Tensor], *,
                 seed: int = 0, share: float = SHARE) -> None:
        if not images or not held_out:
            raise DataError("no images to compare answers on", fix="give more photos: some to fit on, some to compare")
        self.model, self.images, self.held_out = copy.deepcopy(model).eval(), images, held_out
        self.seed, self.share, self._stopped = seed, share, False
        self.wanted = self._ask(self.model)
        self.fingerprint = self._fingerprint()

    def __call__(self, cells: Cells, thorough: bool = False) -> float:
        """The loss of the network with ``cells``; ``thorough``: fitted on all images."""
        network = copy.deepcopy(self.model)
        plan = Plan({layer.name: LayerPlan(*cells.get(layer.name, (DENSE, 1.0))) for layer in module_layers(network)})
        count = len(self.images) if thorough else max(1, round(self.share * len(self.images)))
        prune_oneshot_(network, plan, spread(self.images, count), seed=self.seed, progress=self._go_on)
        found = [output_loss(mine, wanted, 1.0) * len(mine) for mine, wanted
                 in zip(self._ask(network), self.wanted, strict=True)]
        return float(torch.stack(found).sum()) / sum(len(batch) for batch in self.held_out)

    def stop(self) -> None:
        """Let running calls end with an error before their next layer."""
        self._stopped = True

    def _go_on(self, done: int, total: int, name: str) -> None:
        if self._stopped:
            raise RuntimeError(f"stopped at layer {name}")

    @memory_kept()
    def _ask(self, network: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad():
            return [output for batch in self.held_out for output in tensors(network(batch))]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.seed} {self.share}".encode())
        for tensor in (*self.model.state_dict().values(), *self.images, *self.held_out):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
