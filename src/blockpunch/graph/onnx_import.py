"""ONNX model -> Graph: constants folded, shapes made static, operators translated by the rules in ``onnx_ops``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.errors import (
    DynamicShapeError,
    GraphError,
    MissingExtraError,
    ModelError,
)
from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported, check_weights, refusal
from blockpunch.graph.ir import Graph
from blockpunch.graph.onnx_ops import RULES, OnnxNode
from blockpunch.graph.verify import verify

try:
    import onnx
    from onnx import inliner, numpy_helper
    from onnx.reference import ReferenceEvaluator
except ImportError as error:  # running a compiled network does not need onnx, reading a model does
    raise MissingExtraError("onnx", "compile", "Reading an ONNX model") from error

Shapes = Mapping[str, tuple[int, ...]]
_FEW = 8
"""Tensors at which a file is cut by hand."""
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
# Operators of shape arithmetic: when their input could not be imported they are not a second fault.
_FOLDED = frozenset(("Range", "ConstantOfShape", "Equal", "Where", "Less", "Greater", "Not", "And", "Or", "Floor",
                     "Ceil", "NonZero", "Tile", "ScatterND", "GatherND", "ReduceProd", "ReduceMin", "ReduceMax", "Mod"))


def from_onnx(model: str | Path | onnx.ModelProto, *, shape: Shapes | None = None) -> Graph:
    """Import an ONNX model.

    Args:
        model: path of an ``.onnx`` file, or a loaded model.
        shape: input name -> static shape, for inputs whose shape in the file has dynamic dimensions.

    Raises:
        ModelError: no such file, not an ONNX model, weights that are not finite, inputs that are not floating point.
        UnsupportedOperatorError: lists all operators outside the table.
        DynamicShapeError: a dimension is not a number and ``shape`` does not give it.
    """
    proto, where = _load(model)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    graph = _Importer(proto, where, dict(shape or {})).run()
    check_weights(graph)
    try:
        verify(graph, "import")
    except GraphError as error:
        raise ModelError(error.what, where=error.where) from error
    return graph


def _load(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    if isinstance(model, onnx.ModelProto):
        return model, model.graph.name or "model"
    path = Path(model)
    if not path.is_file():
        raise ModelError("no such file", where=str(path), fix="check the path")
    try:
        proto = onnx.load(str(path))
    except FileNotFoundError as error:
        raise ModelError(f"its external data is missing ({error})", where=str(path),
                         fix="keep the data file beside the model") from error
    except PermissionError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), fix="check the file's permissions"
                         ) from error
    except Exception as error:  # protobuf and onnx raise many kinds; all mean that the file cannot be read
        if "data" in type(error).__name__.lower() or "external" in str(error).lower():
            raise ModelError(f"its external data cannot be read ({error})", where=str(path),
                             fix="keep the data file beside the model") from error
        raise ModelError("not an ONNX model, or truncated", where=str(path), fix="export or copy the file again"
                         ) from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError("not an ONNX model, or truncated: it holds no graph", where=str(path),
                         fix="export or copy the file again")
    return proto, str(path)


class _Importer:
    """One import: walks the nodes in order, folding or translating each."""

    def __init__(self, proto: onnx.ModelProto, where: str, shapes: dict[str, tuple[int, ...]]) -> None:
        self.proto, self.where, self.shapes = proto, where, shapes
        self.opset = next((item.version for item in proto.opset_import if item.domain in ("", "ai.onnx")), 1)
        self.builder = GraphBuilder(proto.graph.name or "model", (item.name for item in proto.graph.output))
        self.tensors: dict[str, Tensor | None] = {"": None}
        self.broken: set[str] = set()  # outputs of nodes that could not be imported
        self.refused: list[str] = []
        self.frontier: dict[str, None] = {}  # values that what could not be imported would read
        counts: dict[str, int] = {}
        for node in proto.graph.node:
            counts[node.name] = counts.get(node.name, 0) + 1
        self.unique = {name for name, count in counts.items() if name and count == 1}

    def run(self) -> Graph:
        self._initializers()
        self._inputs()
        for node in self.proto.graph.node:
            self._node(node)
        if self.refused:
            raise refusal(self.refused, RULES, self.where, self._cut())
        outputs = [(item.name, self._lookup(item.name)) for item in self.proto.graph.output]
        return self.builder.finish([(name, tensor) for name, tensor in outputs if tensor is not None])

    def _cut(self) -> str:
        """How to keep what comes before the nodes that could not be imported, where few tensors lead to them."""
        inputs = self.builder.graph.inputs
        ends = [name for name in self.frontier if name not in inputs]
        ends += [item.name for item in self.proto.graph.output if item.name not in (*self.broken, *ends)]
        if not 0 < len(ends) <= _FEW:
            return ""
        return f", or cut it there, if they stand at its end: onnx.utils.extract_model('{self.where}', 'cut.onnx', " \
               f"{inputs}, {ends})"

    def _lookup(self, name: str) -> Tensor | None:
        if name not in self.tensors:
            raise ModelError(f"nothing writes '{name}'", where=self.where, fix="the file is damaged: export it again")
        return self.tensors[name]

    def _initializers(self) -> None:
        for proto in self.proto.graph.initializer:
            try:
                self.tensors[proto.name] = Const(numpy_helper.to_array(proto), proto.name)
            except Exception as error:  # a tensor whose bytes do not match its shape
                raise ModelError(f"weight '{proto.name}' cannot be read ({error})", where=self.where,
                                 fix="the file is damaged: export or copy it again") from error

    def _inputs(self) -> None:
        inputs = [item for item in self.proto.graph.input if item.name not in self.tensors]
        unknown = sorted(set(self.shapes) - {item.name for item in inputs})
        if unknown:
            raise ModelError(f"a shape is given for {unknown}, but the inputs are {[item.name for item in inputs]}",
                             where=self.where, fix="use the input's name in --shape NAME=1,3,224,224")
        for item in inputs:
            if item.type.tensor_type.elem_type not in _FLOATS:
                kind = onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type)
                raise ModelError(f"input '{item.name}' is {kind}, only floating point is supported", where=self.where,
                                 fix="cut the model after its integer preprocessing")
            self.tensors[item.name] = self.builder.add_input(item.name, self._input_shape(item))

    def _input_shape(self, item: onnx.ValueInfoProto) -> tuple[int, ...]:
        tensor = item.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"
                for dim in tensor.shape.dim]
        given = self.shapes.get(item.name)
        if given is not None:
            try:
                shape = tuple(operator.index(size) for size in given)
            except TypeError as error:
                raise ModelError(f"the shape {given!r} for input '{item.name}' is not a list of whole numbers",
                                 where=self.where) from error
            if (tensor.HasField("shape") and len(shape) != len(dims)) or not shape or min(shape) < 1:
                raise ModelError(f"shape {shape} does not fit input '{item.name}' of {dims}", where=self.where)
            return shape
        if not tensor.HasField("shape") or any(isinstance(dim, str) for dim in dims):
            example = ",".join(str(dim) if isinstance(dim, int) else ("1" if i == 0 else "224")
                               for i, dim in enumerate(dims)) or "1,3,224,224"
            raise DynamicShapeError(f"input '{item.name}' has the dynamic shape [{', '.join(map(str, dims))}]",
                                    where=self.where,
                                    fix=f"give its shape: --shape {item.name}={example} "
                                        f"(in Python shape={{'{item.name}': ({example.replace(',', ', ')})}})")
        return tuple(int(dim) for dim in dims)

    def _node(self, node: onnx.NodeProto) -> None:
        label = node.name if node.name in self.unique else node.output[0]
        self.builder.scope = self.builder.path = label
        if any(name in self.broken for name in node.input):
            if node.op_type not in RULES and node.op_type not in _FOLDED:
                self.refused.append(f"{node.op_type} '{label}'")
            self._break(node)
            return
        start = len(self.builder.graph.nodes)
        try:
            results = self._translate(node)
        except Unsupported as reason:
            self.refused.append(f"{node.op_type} '{label}'" + (f": {reason}" if str(reason) else ""))
            self._break(node)
            return
        except GraphError as error:
            raise ModelError(error.what, where=f"{self.where}, {error.where}",
                             fix="the shapes in the model disagree; if --shape was given, the model may be tied to "
                                 "another size") from error
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # what a rule trips over
            raise ModelError(f"its attributes or inputs are not those of a {node.op_type} "
                             f"({type(error).__name__}: {error})", where=f"{self.where}, {node.op_type} '{label}'",
                             fix="the file is damaged, or was written by a faulty exporter") from error
        emitted = {name for item in self.builder.graph.nodes[start:] for name in item.outputs}
        for name, tensor in zip(node.output, results, strict=False):
            if isinstance(tensor, str) and tensor in emitted and self.builder.rename(tensor, name, start):
                tensor = name
            self.tensors[name] = tensor

    def _break(self, node: onnx.NodeProto) -> None:
        """Nothing that ``node`` writes is known."""
        self.broken.update(node.output)
        self.frontier.update((name, None) for name in node.input if isinstance(self.tensors.get(name), str))

    def _translate(self, node: onnx.NodeProto) -> list[Tensor]:
        inputs = [self._lookup(name) for name in node.input]
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"from the domain '{node.domain}'")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise Unsupported("control flow")
        if all(tensor is None or isinstance(tensor, Const) for tensor in inputs):
            if node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
                raise Unsupported("random numbers")
            return self._fold(node, inputs)
        rule = RULES.get(node.op_type)
        if rule is None:
            raise Unsupported("")
        attrs = {item.name: _plain(onnx.helper.get_attribute_value(item)) for item in node.attribute}
        used = max((index + 1 for index, name in enumerate(node.output) if name), default=0)
        return rule(self.builder, OnnxNode(node.op_type, self.opset, inputs, used, attrs))

    def _fold(self, node: onnx.NodeProto, inputs: list[Tensor | None]) -> list[Tensor]:
        """Everything computed from constants alone is computed now, by onnx's own reference evaluator."""
        if node.op_type == "Identity" and isinstance(inputs[0], Const):
            return [inputs[0]]
        feeds = {name: tensor.array for name, tensor in zip(node.input, inputs, strict=True)
                 if isinstance(tensor, Const)}
        graph = onnx.helper.make_graph([node], "constant", *(
            [onnx.ValueInfoProto(name=name) for name in names] for names in (feeds, filter(None, node.output))))
        try:
            with np.errstate(all="ignore"):
                # a node alone would be taken for one of the newest opset
                model = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
                results = dict(zip(filter(None, node.output), ReferenceEvaluator(model).run(None, feeds), strict=True))
        except Exception as error:  # whatever the evaluator cannot do
            raise Unsupported(f"constant folding failed: {type(error).__name__}: {error}") from error
        return [Const(np.asarray(results[name]) if name else np.zeros(0), name) for name in node.output]


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
