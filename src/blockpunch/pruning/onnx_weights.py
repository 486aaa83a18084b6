"""The weights of an ONNX file, to be read and written in place: the file's graph stays as it is.

Layers carry the names that :func:`blockpunch.graph.onnx_import.from_onnx` gives them. A weight may be an initializer
(also in external data), a Constant node, shared by several nodes, or computed from constants; a computed one is written
as a new initializer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.atomic import atomic_path
from blockpunch.errors import MissingExtraError, ModelError
from blockpunch.layers import Layer

try:
    import onnx
    from onnx import inliner, numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as error:
    raise MissingExtraError("onnx", "compile", "Pruning an ONNX model") from error

Array = npt.NDArray[Any]
INLINE_LIMIT = 1_900_000_000
"""Bytes above which the weights go into a file of their own (protobuf ends at 2 GiB)."""


@dataclass(frozen=True)
class WeightUse:
    """A node that computes with a prunable weight.

    ``transposed``: the file holds ``[in, out]``, as MatMul and Gemm without transB do; ``line``: it holds a kernel
    without height.
    """

    layer: Layer
    node: onnx.NodeProto
    transposed: bool
    line: bool = False

    def as_layer(self, stored: Array) -> Array:
        """A constant of the file, or an array like it, in the layer's shape (of a line's kernel: with one row)."""
        return stored.T if self.transposed else stored.reshape(self.layer.shape)

    def as_stored(self, array: Array) -> Array:
        """The inverse of :meth:`as_layer`."""
        return array.T if self.transposed else array.squeeze(2) if self.line else array

    @property
    def tensor(self) -> str:
        """Name of the weight's tensor, as the node reads it."""
        return str(self.node.input[1])


class OnnxWeights:
    """An ONNX model in memory whose constants can be read and replaced by name.

    Args:
        model: path of an ``.onnx`` file, or a loaded model (which is copied).

    Raises:
        ModelError: no such file, or not an ONNX model.
    """

    def __init__(self, model: str | Path | onnx.ModelProto) -> None:
        self.where = "model" if isinstance(model, onnx.ModelProto) else str(model)
        self.proto = _load(model)
        if self.proto.functions:
            self.proto = inliner.inline_local_functions(self.proto)
        self.graph = self.proto.graph
        self._initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self._producers = {name: node for node in self.graph.node for name in node.output if name}
        self._computed: dict[str, Array | None] = {}
        self._constant_names = self._find_constants()
        self.readers = Counter(_reads(self.graph))

    def uses(self) -> list[WeightUse]:
        """Every node with a prunable weight, in the file's order (the order in which they run)."""
        counts = Counter(node.name for node in self.graph.node)
        found = []
        for node in self.graph.node:
            label = node.name if node.name and counts[node.name] == 1 else node.output[0]
            use = self._use(node, label) if node.domain in ("", "ai.onnx") else None
            if use is not None:
                found.append(use)
        return found

    def _use(self, node: onnx.NodeProto, label: str) -> WeightUse | None:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            return None
        if node.input[0] in self._constant_names or (weight := self.constant(node.input[1])) is None:
            return None
        if weight.ndim not in ((3, 4) if node.op_type == "Conv" else (2,)):
            return None
        attrs = {item.name: item.i for item in node.attribute}
        if node.op_type == "Conv":
            line = weight.ndim == 3
            shape = (*weight.shape[:2], 1, weight.shape[2]) if line else weight.shape
            return WeightUse(Layer(label, "conv", shape, attrs.get("group", 1)), node, False, line)
        transposed = node.op_type == "MatMul" or not attrs.get("transB", 0)
        if attrs.get("transA", 0):
            label += ".1"  # the importer puts a Transpose before it, which takes the name
        return WeightUse(Layer(label, "linear", weight.shape[::-1] if transposed else weight.shape), node, transposed)

    def constant(self, name: str) -> Array | None:
        """The value of tensor ``name`` where it depends on no input, else None."""
        name = self.alias(name)
        if name in self._initializers:
            return self._read(self._initializers[name])
        node = self._producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant" and (value := _value(node)) is not None:
            return self._read(value)
        if name not in self._computed:
            self._computed[name] = self._compute(name) if name in self._constant_names else None
        return self._computed[name]

    def alias(self, name: str) -> str:
        """The tensor that ``name`` is a copy of, by Identity nodes (exporters write them for shared weights)."""
        while (node := self._producers.get(name)) is not None and node.op_type == "Identity":
            name = node.input[0]
        return name

    def replace(self, users: list[tuple[onnx.NodeProto, int]], array: Array) -> None:
        """Let the given inputs ``(node, index)`` of nodes, which all read one constant, read ``array`` instead.

        The constant is written in place where nothing else reads it, else a new initializer is added beside it.
        """
        name = self.alias(users[0][0].input[users[0][1]])
        mine = sum(self.alias(node.input[index]) == name for node, index in users)
        if self._readers_of(name) == mine and self._overwrite(name, array):
            return
        dtype = getattr(self.constant(name), "dtype", array.dtype)
        fresh = self._fresh(f"{name}.pruned")
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, dtype=dtype), fresh))
        self._initializers[fresh] = self.graph.initializer[-1]
        for node, index in users:
            self.readers[node.input[index]] -= 1
            node.input[index] = fresh
            self.readers[fresh] += 1
        self._drop_unused(name)

    def save(self, path: str | Path) -> None:
        """Write the model to ``path``, whole or not at all; weights beyond 1.9 GB go to ``NAME.data`` beside it.

        The object is of no use afterwards: its weights may have moved out of memory.

        Raises:
            OutputError: the file cannot be written.
        """
        path = Path(path)
        if self.proto.ByteSize() <= INLINE_LIMIT:
            with atomic_path(path) as temporary:
                onnx.save(self.proto, str(temporary))
            return
        data = path.with_name(path.name + ".data")
        with atomic_path(path) as temporary, atomic_path(data) as temporary_data:
            onnx.save(self.proto, str(temporary), save_as_external_data=True, location=temporary_data.name)
            proto = onnx.load(str(temporary), load_external_data=False)  # names the temporary file: name the final one
            for tensor in proto.graph.initializer:
                for entry in tensor.external_data:
                    if entry.key == "location":
                        entry.value = data.name
            temporary.write_bytes(proto.SerializeToString())

    def _find_constants(self) -> set[str]:
        """Names of all tensors that depend on no input of the model."""
        names = {"", *self._initializers}
        for node in self.graph.node:
            if names.issuperset(node.input) and not any(attribute.HasField("g") for attribute in node.attribute):
                names.update(node.output)
        return names

    def _read(self, tensor: onnx.TensorProto) -> Array:
        try:
            return np.asarray(numpy_helper.to_array(tensor))
        except Exception as error:  # a tensor whose bytes do not match its shape
            raise ModelError(f"weight '{tensor.name}' cannot be read ({error})", where=self.where,
                             fix="the file is damaged: export or copy it again") from error

    def _compute(self, name: str) -> Array | None:
        """Evaluate the nodes that ``name`` depends on."""
        needed, pending = {name}, [name]
        while pending:
            node = self._producers.get(pending.pop())
            fresh = {source for source in node.input if source} - needed if node is not None else set()
            needed |= fresh
            pending += fresh
        nodes = [node for node in self.graph.node if needed.intersection(node.output)]
        sources = [self._initializers[source] for source in sorted(needed & self._initializers.keys())]
        graph = onnx.helper.make_graph(nodes, "constant", [], [onnx.ValueInfoProto(name=name)], sources)
        model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        try:
            return np.asarray(ReferenceEvaluator(model).run([name], {})[0])
        except Exception:  # an operator that the evaluator lacks: then this is no weight that we can prune
            return None

    def _readers_of(self, name: str) -> int:
        """Readers of ``name``, those through Identity nodes counted instead of the Identity."""
        total = self.readers[name]
        for node in self.graph.node:
            if node.op_type == "Identity" and node.input[0] == name:
                total += self._readers_of(node.output[0]) - 1
        return total

    def _overwrite(self, name: str, array: Array) -> bool:
        tensor = self._initializers.get(name)
        if tensor is None and (node := self._producers.get(name)) is not None and node.op_type == "Constant":
            tensor = _value(node)
        if tensor is None:
            return False
        dtype = self._read(tensor).dtype
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, dtype=dtype), tensor.name))
        return True

    def _fresh(self, base: str) -> str:
        name, number = base, 0
        while name in self._initializers or name in self._producers:
            number += 1
            name = f"{base}.{number}"
        return name

    def _drop_unused(self, name: str) -> None:
        """Remove the constant ``name`` and what only it needed, once nothing reads it."""
        if self.readers[name] > 0:
            return
        if name in self._initializers:
            self.graph.initializer.remove(self._initializers.pop(name))
        elif (node := self._producers.get(name)) is not None and not any(self.readers[out] for out in node.output):
            self.graph.node.remove(node)
            for out in node.output:
                self._producers.pop(out, None)
            for source in node.input:
                self.readers[source] -= 1
                self._drop_unused(source)


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every use of a tensor: by a node, inside its branches and loops, or as an output of the graph."""
    for node in graph.node:
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _reads(attribute.g)
    yield from (item.name for item in graph.output)


def _value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant node holds in its attribute 'value'."""
    return next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)


def _load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    if not Path(model).is_file():
        raise ModelError("no such file", where=str(model), fix="check the path")
    try:
        proto = onnx.load(str(model))
    except Exception as error:  # protobuf and onnx raise many kinds; all mean that the file cannot be read
        raise ModelError(f"not an ONNX model, truncated, or its external data is missing ({type(error).__name__})",
                         where=str(model), fix="export or copy the file again, with its data file") from error
    if not proto.graph.node:
        raise ModelError("not an ONNX model, or truncated: it holds no graph", where=str(model),
                         fix="export or copy the file again")
    return proto
