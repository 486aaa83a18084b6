"""torch module or exported program -> Graph, through torch.export; nodes keep the path of the module they came from."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from blockpunch.errors import (
    DynamicShapeError,
    GraphError,
    MissingExtraError,
    ModelError,
    UnsupportedOperatorError,
)
from blockpunch.graph.builder import Const, GraphBuilder, Tensor, Unsupported, check_weights, refusal
from blockpunch.graph.ir import Graph
from blockpunch.graph.torch_ops import RULES, TorchNode, layout
from blockpunch.graph.verify import verify

try:
    import torch
    from torch import fx
    from torch.export.graph_signature import OutputKind
except ImportError as error:
    raise MissingExtraError("torch", "train", "Importing a torch module") from error

_LAYERS = ("conv2d", "convolution", "linear", "addmm", "mm")
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async")  # they have no result


def from_torch(model: torch.nn.Module | torch.export.ExportedProgram, example: Any = None) -> Graph:
    """Import a torch model in eval mode.

    Args:
        model: a module, or an exported program with static shapes.
        example: for a module, an example input: a tensor, an array, or a tuple of these.

    Returns:
        The graph. A convolution's or linear layer's node has its module's path as name; constants have the names of
        the parameters; the outputs are called ``output``, or ``output0``, ``output1``... when there are several.

    Raises:
        ModelError: the module cannot be captured, or has weights that are not finite.
        UnsupportedOperatorError: lists all operators outside the table.
        DynamicShapeError: the exported program has symbolic sizes.
    """
    program = model if isinstance(model, torch.export.ExportedProgram) else _capture(model, example)
    where = type(model).__name__
    program = _decompose(program, {})  # nothing is taken apart, but in-place operators become pure ones
    try:
        graph = _Importer(program, where).run()
    except UnsupportedOperatorError as refused:  # taken apart, the unknown operators may consist of known ones
        table = torch.export.default_decompositions()
        for target in list(table):
            if target.__name__.split(".")[0] in RULES:
                table.pop(target)
        try:
            graph = _Importer(_decompose(program, table), where).run()
        except UnsupportedOperatorError:
            raise refused from None
    check_weights(graph)
    try:
        verify(graph, "import")
    except GraphError as error:
        raise ModelError(error.what, where=error.where) from error
    return graph


def _capture(model: torch.nn.Module, example: Any) -> torch.export.ExportedProgram:
    where = type(model).__name__
    if example is None:
        raise ModelError("a torch module needs an example input", where=where,
                         fix="pass example=torch.zeros(1, 3, 224, 224), in the shape the network is meant for")
    items = tuple(example) if isinstance(example, tuple | list) else (example,)
    inputs = tuple(torch.from_numpy(item) if isinstance(item, np.ndarray) else item for item in items)
    with _evaluating(model), torch.no_grad():
        try:
            return torch.export.export(model, inputs)
        except Exception as error:  # torch.export raises many kinds; all mean that the module cannot be captured
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"torch.export cannot capture the module ({reason[0]})", where=where,
                             fix="check that model(*example) runs without control flow that depends on data"
                             ) from error


def _decompose(program: torch.export.ExportedProgram, table: Any) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch about its own internals
        return program.run_decompositions(table)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode for a while; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Importer:
    """One import: walks the nodes of an exported program, folding or translating each."""

    def __init__(self, program: torch.export.ExportedProgram, where: str) -> None:
        self.program, self.where = program, where
        count = sum(spec.kind == OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs)
        self.outputs = ["output"] if count == 1 else [f"output{index}" for index in range(count)]
        self.builder = GraphBuilder(where, self.outputs)
        self.results: dict[fx.Node, Any] = {}  # fx node -> Tensor, list of Tensors, or plain data
        self.broken: set[fx.Node] = set()
        self.refused: list[str] = []

    def run(self) -> Graph:
        outputs: list[Any] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.results[node] = self._placeholder(node)
            elif node.op == "get_attr":
                self.results[node] = self._const(getattr(self.program.graph_module, node.target), node.target)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = list(node.args[0])
        if self.refused:
            raise refusal(self.refused, RULES, self.where)
        specs = self.program.graph_signature.output_specs
        kept = [node for node, spec in zip(outputs, specs, strict=True)
                if spec.kind == OutputKind.USER_OUTPUT and isinstance(node, fx.Node)]
        return self.builder.finish((name, self.results[node]) for name, node in zip(self.outputs, kept, strict=False))

    @staticmethod
    def _const(tensor: torch.Tensor, name: str = "") -> Const:
        tensor = tensor.detach().cpu()
        return Const((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(), name)

    def _placeholder(self, node: fx.Node) -> Any:
        program, signature = self.program, self.program.graph_signature
        for names, tensors in ((signature.inputs_to_parameters, program.state_dict),
                               (signature.inputs_to_buffers, {**program.constants, **program.state_dict}),
                               (signature.inputs_to_lifted_tensor_constants, program.constants)):
            if node.name in names:
                return self._const(tensors[names[node.name]], names[node.name])
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value
        if not all(isinstance(size, int) for size in value.shape):
            raise DynamicShapeError(f"input '{node.name}' has the dynamic shape {list(value.shape)}", where=self.where,
                                    fix="export the program without dynamic_shapes, or pass the module and an example")
        if not value.dtype.is_floating_point:
            raise ModelError(f"input '{node.name}' is {value.dtype}, only floating point is supported",
                             where=self.where, fix="cut the model after its integer preprocessing")
        return self.builder.add_input(node.name, tuple(value.shape))

    def _call(self, node: fx.Node) -> None:
        name = str(getattr(node.target, "__name__", node.target)).split(".")[0]
        if name in _CHECKS:
            return
        label = self._label(node, name)
        try:
            if any(item in self.broken for item in node.all_input_nodes):
                if name not in RULES and node.target is not operator.getitem:
                    raise Unsupported
                self.broken.add(node)
                return
            self.results[node] = self._translate(node, name)
        except Unsupported as reason:
            self.refused.append(f"{name} '{label}'" + (f": {reason}" if str(reason) else ""))
            self.broken.add(node)
        except GraphError as error:
            raise ModelError(error.what, where=f"{self.where}, {error.where}") from error

    def _label(self, node: fx.Node, name: str) -> str:
        """Set the name and path of what is emitted next: layers are called like their module."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = (stack[-1][0], str(stack[-1][1])) if stack else ("", "")
        leaf = kind.startswith("torch.nn.modules.") and not kind.endswith(("Sequential", "ModuleList"))
        self.builder.path = path
        if path and (name in _LAYERS or (leaf and name not in layout.RULES)):
            self.builder.scope = path
        else:
            self.builder.scope = f"{path}.{name}" if path else node.name
        return self.builder.scope

    def _translate(self, node: fx.Node, name: str) -> Any:
        args, kwargs = self._resolve(list(node.args)), self._resolve(dict(node.kwargs))
        if node.target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], list) else self._first(args)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise Unsupported
        if not self._reads_values(args) and not self._reads_values(kwargs):
            return self._fold(node, args, kwargs)
        rule = RULES.get(name)
        if rule is None:
            raise Unsupported
        schema = node.target._schema.arguments
        bound = {item.name: item.default_value for item in schema if item.has_default_value()}
        bound.update(zip((item.name for item in schema), args, strict=False))
        bound.update(kwargs)
        return rule(self.builder, TorchNode(name, bound))

    @staticmethod
    def _first(args: list[Any]) -> Tensor:
        """Operators that return more than the tensor of interest (indices, saved statistics): only that one is used."""
        tensor, index = args
        if index != 0:
            raise Unsupported("a result other than the first (such as the indices of a pool)")
        return tensor  # type: ignore[no-any-return]

    def _resolve(self, item: Any) -> Any:
        if isinstance(item, fx.Node):
            return self.results[item]
        if isinstance(item, list | tuple):
            return [self._resolve(part) for part in item]
        if isinstance(item, dict):
            return {key: self._resolve(part) for key, part in item.items()}
        return item

    def _reads_values(self, item: Any) -> bool:
        if isinstance(item, list | dict):
            return any(self._reads_values(part) for part in (item.values() if isinstance(item, dict) else item))
        return isinstance(item, str) and item in self.builder.graph.values

    def _fold(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Everything computed from constants alone is computed now, by torch itself."""
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unsupported("random numbers")
        result = node.target(*self._tensors(args), **self._tensors(kwargs))
        if isinstance(result, list | tuple):
            return [self._const(item) for item in result]
        if not isinstance(result, torch.Tensor):
            return result
        return self._const(result, self._kept_name(args, result))

    def _tensors(self, item: Any) -> Any:
        if isinstance(item, Const):
            return torch.from_numpy(np.array(item.array))
        if isinstance(item, list):
            return [self._tensors(part) for part in item]
        if isinstance(item, dict):
            return {key: self._tensors(part) for key, part in item.items()}
        return item

    @staticmethod
    def _kept_name(args: list[Any], result: torch.Tensor) -> str:
        """A parameter that is only moved around (transposed, viewed) keeps its name."""
        tensors = [item for item in args if isinstance(item, Const)]
        alone = len(tensors) == 1 and tensors[0] is args[0] and tensors[0].array.size == result.numel()
        return tensors[0].name if alone else ""
