"""Where a network comes from: an ONNX file or a torch module; how it is read, and how weights are written back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from blockpunch.atomic import atomic_path
from blockpunch.errors import MissingExtraError, ModelError
from blockpunch.graph import load_graph
from blockpunch.graph.ir import Array, Graph
from blockpunch.optimize.workfolder import fingerprint
from blockpunch.plan import Plan


class Source(Protocol):
    """A trained network. ``graph`` is as imported, before passes; ``key`` changes when the network does."""

    name: str
    graph: Graph
    key: str

    def dense_onnx(self, folder: Path) -> Path:
        """The dense network as an ONNX file, written into ``folder`` if it does not come as one."""
        ...

    def prune(self, plan: Plan, path: Path) -> None:
        """Write the network as ONNX, pruned in one shot."""
        ...

    def write(self, constants: Mapping[str, Array], path: Path) -> None:
        """Write the network as ONNX with new values for some constants of ``graph``."""
        ...

    def read(self, path: Path) -> Graph:
        """The graph of what :meth:`write` or :meth:`prune` wrote, under the names of ``graph``."""
        ...


class OnnxSource:
    """A network in an ONNX file."""

    def __init__(self, path: Path, shape: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.path, self.name = path, path.stem
        self.graph = load_graph(path, shape=shape)
        self.key = fingerprint(path, {name: list(self.graph.shape(name)) for name in self.graph.inputs})

    def dense_onnx(self, folder: Path) -> Path:
        """The file itself."""
        return self.path

    def prune(self, plan: Plan, path: Path) -> None:
        """The file with zeros in its weights."""
        from blockpunch.pruning.onnx_prune import prune_onnx

        prune_onnx(self.path, plan, path)

    def write(self, constants: Mapping[str, Array], path: Path) -> None:
        """The file with other weights.

        Raises:
            ModelError: a weight that is computed in the file, not stored.
        """
        from blockpunch.pruning.onnx_recover import write_onnx

        write_onnx(self.path, self.graph, constants, path)

    def read(self, path: Path) -> Graph:
        """Import the file."""
        return load_graph(path, shape={name: self.graph.shape(name) for name in self.graph.inputs})


class ModuleSource:
    """A ``torch.nn.Module`` with an example input; read through ``torch.export``."""

    def __init__(self, module: Any, example: Any, name: str) -> None:
        self.module, self.example, self.name = module.eval(), example, name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns of its own deprecated parts
            self.graph = load_graph(module, example)
        digests = {key: [list(value.shape), float(value.double().sum()), float(value.double().abs().sum())]
                   for key, value in module.state_dict().items()}
        self.key = fingerprint(name, digests, {key: list(self.graph.shape(key)) for key in self.graph.inputs})

    def dense_onnx(self, folder: Path) -> Path:
        """``dense.onnx``, written when it is not there yet."""
        path = folder / "dense.onnx"
        if not path.is_file():
            self._export(self.module, path)
        return path

    def prune(self, plan: Plan, path: Path) -> None:
        """The module with zeros in its weights; see :meth:`write`."""
        changed = {}
        for node in self.graph.nodes:
            entry = plan.layers.get(node.name)
            if entry is not None and entry.prunes:
                weight = self.graph.constants[node.inputs[1]]
                mask = entry.scheme.mask(weight, entry.rate, conv_groups=int(node.attrs.get("groups", 1)))
                changed[node.inputs[1]] = np.where(mask, weight, np.zeros((), weight.dtype))
        self.write(changed, path)

    def write(self, constants: Mapping[str, Array], path: Path) -> None:
        """A copy of the module with the new weights, exported; the weights beside it as ``.safetensors``.

        Raises:
            ModelError: a constant that is no parameter of the module.
        """
        import torch

        save_file = _safetensors("save_file")
        module = copy.deepcopy(self.module)
        state = module.state_dict()
        unknown = [name for name in constants if name not in state]
        if unknown:
            raise ModelError(f"'{unknown[0]}' is no parameter of the module", where=self.name)
        for name, value in constants.items():
            state[name].copy_(torch.from_numpy(np.array(value)).reshape(state[name].shape))
        self._export(module, path)
        with atomic_path(path.with_suffix(".safetensors")) as temporary:
            save_file({name: value.contiguous() for name, value in state.items()}, str(temporary))

    def read(self, path: Path) -> Graph:
        """The module's graph with the weights that lie beside the ONNX file."""
        state = _safetensors("load_file")(str(path.with_suffix(".safetensors")))
        graph = self.graph.copy()
        graph.constants.update({name: value.numpy().reshape(graph.constants[name].shape)
                                for name, value in state.items() if name in graph.constants})
        return graph

    def _export(self, module: Any, path: Path) -> None:
        """The exporter that needs no package but torch and onnx; it is announced to end one day, hence the filter."""
        import torch

        with warnings.catch_warnings(), atomic_path(path) as temporary:
            warnings.simplefilter("ignore")
            torch.onnx.export(module, self.example if isinstance(self.example, tuple) else (self.example,),
                              str(temporary), dynamo=False, input_names=list(self.graph.inputs))


def _safetensors(name: str) -> Any:
    """A function of ``safetensors.torch``."""
    try:
        from safetensors import torch as functions
    except ImportError:
        raise MissingExtraError("safetensors", "train", "keeping the trained weights") from None
    return getattr(functions, name)
