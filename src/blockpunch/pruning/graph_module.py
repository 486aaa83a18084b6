"""A graph as a torch module, so that a network that came as an ONNX file can be trained.

Convolutions and linear layers become real ``nn.Conv2d`` and ``nn.Linear`` modules under their layers' names, which is
what pruners and optimisers look for; everything else is computed by functions. The graph is the one that was imported,
before any pass: then every trained value belongs to one constant of the file, and goes back there
(:func:`blockpunch.pruning.onnx_recover.write_onnx`). Where the file still has batch-norms they train as usual: on the
statistics of the batch, which the running ones follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blockpunch.errors import MissingExtraError, ModelError
from blockpunch.graph.ir import Array, Graph, Node
from blockpunch.graph.operators.layout import resize_linear, resize_nearest

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "train", "training a network") from error

Function = Callable[..., Any]


class GraphModule(nn.Module):  # type: ignore[misc]
    """Runs ``graph`` (as imported: before passes, no epilogues) on a batch of any size.

    Takes the graph's inputs in order and returns its output, or a tuple of them. ``constants()`` gives the trained
    values back under the graph's names.

    Raises:
        ModelError: an operator that cannot be trained through.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._homes: dict[str, tuple[str, str]] = {}
        unknown = sorted({node.op for node in graph.nodes} - _FUNCTIONS.keys() - {"Conv", "Linear", "BatchNorm"})
        if unknown:
            raise ModelError(f"no training through {', '.join(unknown)}", where=graph.name)
        for node in graph.nodes:
            if node.epilogue:
                raise ModelError("a fused graph cannot be trained", where=node.name, fix="train before optimize()")
            if node.op in ("Conv", "Linear"):
                self._add_layer(node)
            elif node.op == "BatchNorm":
                self._add_norm(node)
        self._fixed = {name: torch.from_numpy(np.array(value)) for name, value in graph.constants.items()
                       if name not in self._homes}
        self._forget = _last_uses(graph)

    def _apply(self, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Whatever moves the parameters moves the other constants too (buffers could not keep their dotted names)."""
        super()._apply(function, *args, **kwargs)
        self._fixed = {name: function(value) for name, value in self._fixed.items()}
        return self

    def _add_layer(self, node: Node) -> None:
        weight = self.graph.constants[node.inputs[1]]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op == "Conv":
            groups, (top, left, bottom, right) = node.attrs["groups"], node.attrs["pads"]
            own = (top, left) if (top, left) == (bottom, right) else 0  # uneven padding is done before the layer
            layer = nn.Conv2d(weight.shape[1] * groups, weight.shape[0], weight.shape[2:], node.attrs["stride"], own,
                              dilation=node.attrs["dilation"], groups=groups, bias=bias is not None)
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        self._place(node.name, layer)
        layer.weight = self._parameter(node, node.inputs[1], "weight")
        if bias is not None:
            layer.bias = self._parameter(node, bias, "bias")

    def _parameter(self, node: Node, constant: str, field: str) -> Any:
        """A constant as a parameter: the same one for all nodes that share it."""
        path, known = self._homes.setdefault(constant, (node.name, field))
        if path == node.name:
            return nn.Parameter(torch.from_numpy(np.array(self.graph.constants[constant])))
        return getattr(self.get_submodule(path), known)

    def _add_norm(self, node: Node) -> None:
        rank = len(self.graph.shape(node.inputs[0]))
        channels = len(self.graph.constants[node.inputs[1]])
        layer = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(channels, eps=node.attrs["eps"])
        self._place(node.name, layer)
        layer.weight = self._parameter(node, node.inputs[1], "weight")
        layer.bias = self._parameter(node, node.inputs[2], "bias")
        for name, field in zip(node.inputs[3:], ("running_mean", "running_var"), strict=True):
            getattr(layer, field).copy_(torch.from_numpy(np.array(self.graph.constants[name])))
            self._homes.setdefault(name, (node.name, field))

    def _place(self, name: str, layer: Any) -> None:
        """Put a module at the dotted path ``name``, so that ``named_modules`` calls it so."""
        *parents, last = name.split(".")
        home: Any = self
        for part in parents:
            if part not in home._modules:
                home.add_module(part, nn.Module())
            home = home._modules[part]
        if last in home._modules:  # "a.b" came before "a": take over what is already below
            for below, module in home._modules[last].named_children():
                layer.add_module(below, module)
        home.add_module(last, layer)

    def forward(self, *inputs: Any) -> Any:
        """The graph's output for a batch."""
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        sizes = self.graph.shape(self.graph.inputs[0])[0], inputs[0].shape[0]
        for node in self.graph.nodes:
            arguments = [values[name] if name in values else self._fixed.get(name) for name in node.inputs]
            values[node.outputs[0]] = self._compute(node, arguments, sizes)
            for name in self._forget[node.name]:
                del values[name]
        outputs = tuple(values[name] for name in self.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _compute(self, node: Node, arguments: list[Any], sizes: tuple[int, int]) -> Any:
        if node.op == "Conv":
            top, left, bottom, right = node.attrs["pads"]
            even = (top, left) == (bottom, right)
            x = arguments[0] if even else functional.pad(arguments[0], (left, right, top, bottom))
            return self.get_submodule(node.name)(x)
        if node.op in ("Linear", "BatchNorm"):
            return self.get_submodule(node.name)(arguments[0])
        if node.op == "Reshape":
            shape = node.attrs["shape"]
            batched = shape and shape[0] == sizes[0]
            return arguments[0].reshape(sizes[1], *shape[1:]) if batched else arguments[0].reshape(shape)
        return _FUNCTIONS[node.op](node.attrs, *arguments)

    def constants(self) -> dict[str, Array]:
        """Constant name -> trained value, for every weight, bias, and batch-norm's scale, shift and statistics."""
        return {name: getattr(self.get_submodule(path), field).detach().cpu().numpy().copy()
                for name, (path, field) in self._homes.items()}


def _last_uses(graph: Graph) -> dict[str, list[str]]:
    """Node name -> the values that nothing needs after it."""
    last = {name: node.name for node in graph.nodes for name in node.inputs if name in graph.values}
    last.update((name, "") for name in graph.outputs)
    forget: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for name, node in last.items():
        if node:
            forget[node].append(name)
    return forget


def _max_pool(attrs: dict[str, Any], x: Any) -> Any:
    top, left, bottom, right = attrs["pads"]
    x = functional.pad(x, (left, right, top, bottom), value=-math.inf) if any(attrs["pads"]) else x
    return functional.max_pool2d(x, attrs["kernel"], attrs["stride"], dilation=attrs["dilation"])


def _average_pool(attrs: dict[str, Any], x: Any) -> Any:
    top, left, bottom, right = attrs["pads"]
    kernel, stride = attrs["kernel"], attrs["stride"]
    pooled = functional.avg_pool2d(functional.pad(x, (left, right, top, bottom)), kernel, stride)
    if attrs["count_include_pad"] or not any(attrs["pads"]):
        return pooled
    inside = functional.pad(torch.ones_like(x[:1, :1]), (left, right, top, bottom))
    return pooled / functional.avg_pool2d(inside, kernel, stride).clamp_min(1 / (kernel[0] * kernel[1]))


def _slice(attrs: dict[str, Any], x: Any) -> Any:
    for start, stop, axis, step in zip(*(attrs[key] for key in ("starts", "stops", "axes", "steps")), strict=True):
        x = (x[(slice(None),) * axis + (slice(start, stop, step),)] if step > 0
             else x.index_select(axis, torch.tensor(range(start, stop, step), device=x.device)))
    return x


def _pad(attrs: dict[str, Any], x: Any) -> Any:
    rank = x.dim()
    pairs = [(attrs["pads"][axis], attrs["pads"][axis + rank]) for axis in reversed(range(rank))]
    return functional.pad(x, [size for pair in pairs for size in pair], value=attrs["value"])


def _resize(attrs: dict[str, Any], x: Any) -> Any:
    for axis, out, scale in zip((2, 3), attrs["size"], attrs["scales"], strict=True):
        size = x.shape[axis]
        if attrs["mode"] == "nearest":
            index = resize_nearest(attrs["coordinates"], attrs["nearest_rounding"], size, out, scale)
            x = x.index_select(axis, torch.from_numpy(index).to(x.device))
            continue
        found = resize_linear(attrs["coordinates"], size, out, scale)
        left, right, share = (torch.from_numpy(part).to(x.device) for part in found)
        share = share.reshape(-1, 1) if axis == 2 else share
        x = x.index_select(axis, left) * (1 - share) + x.index_select(axis, right) * share
    return x


def _reduce_mean(attrs: dict[str, Any], x: Any) -> Any:
    return x.mean(dim=tuple(attrs["axes"]), keepdim=bool(attrs["keepdims"]))


def _reduce_max(attrs: dict[str, Any], x: Any) -> Any:
    return x.amax(dim=tuple(attrs["axes"]), keepdim=bool(attrs["keepdims"]))


def _concat(attrs: dict[str, Any], *parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts), dim=attrs["axis"])


_FUNCTIONS: dict[str, Function] = {
    "Reshape": lambda attrs, x: x.reshape(attrs["shape"]),  # the batch is put in by the module
    "Transpose": lambda attrs, x: x.permute(attrs["perm"]), "Concat": _concat, "Slice": _slice, "Pad": _pad,
    "ReduceMean": _reduce_mean, "ReduceMax": _reduce_max, "Resize": _resize, "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda attrs, x: x.mean(dim=(2, 3), keepdim=True),
    "MatMul": lambda attrs, a, b: a @ b, "Softmax": lambda attrs, x: torch.softmax(x, attrs["axis"]),
    "Add": lambda attrs, a, b: a + b, "Sub": lambda attrs, a, b: a - b, "Mul": lambda attrs, a, b: a * b,
    "Div": lambda attrs, a, b: a / b, "Pow": lambda attrs, a, b: a ** b,
    "Min": lambda attrs, a, b: torch.minimum(a, b), "Max": lambda attrs, a, b: torch.maximum(a, b),
    "Affine": lambda attrs, x: x * attrs["scale"] + attrs["shift"], "Relu": lambda attrs, x: torch.relu(x),
    "Clip": lambda attrs, x: functional.hardtanh(x, attrs["min"], attrs["max"]),  # clamp's gradient takes ten times it
    "Sigmoid": lambda attrs, x: torch.sigmoid(x), "Tanh": lambda attrs, x: torch.tanh(x),
    "Silu": lambda attrs, x: functional.silu(x), "HardSwish": lambda attrs, x: functional.hardswish(x),
    "HardSigmoid": lambda attrs, x: torch.clamp(attrs["alpha"] * x + attrs["beta"], 0, 1),
    "LeakyRelu": lambda attrs, x: functional.leaky_relu(x, attrs["alpha"]),
    "Elu": lambda attrs, x: functional.elu(x, attrs["alpha"]),
    "Gelu": lambda attrs, x: functional.gelu(x, approximate=attrs["approximate"]),
    "PRelu": lambda attrs, x, slope: torch.where(x > 0, x, x * slope),
    "Softplus": lambda attrs, x: functional.softplus(x), "Mish": lambda attrs, x: functional.mish(x),
    "Exp": lambda attrs, x: torch.exp(x), "Log": lambda attrs, x: torch.log(x),
    "Sqrt": lambda attrs, x: torch.sqrt(x), "Neg": lambda attrs, x: -x, "Abs": lambda attrs, x: torch.abs(x),
    "Erf": lambda attrs, x: torch.erf(x), "Sin": lambda attrs, x: torch.sin(x), "Cos": lambda attrs, x: torch.cos(x),
}
