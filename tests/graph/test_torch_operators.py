"""Every aten operator that the torch importer knows, against torch; many per exported module, since export is slow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx_oracle import assert_close
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from blockpunch.errors import DynamicShapeError, ModelError, UnsupportedOperatorError
from blockpunch.graph import Graph, load_graph
from blockpunch.graph.interpreter import run
from blockpunch.graph.passes import optimize
from blockpunch.graph.torch_ops import RULES

Functions = list[Callable[[Tensor], Tensor]]


class Several(nn.Module):
    """Applies every function to the input and returns all results."""

    def __init__(self, functions: Functions) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x) for function in self.functions)


def check(model: nn.Module, x: Tensor, *, core: bool = False) -> Graph:
    """Import (from the module, or from a program decomposed to core aten), run, compare with torch."""
    model.eval()
    program = torch.export.export(model, (x,)).run_decompositions() if core else model
    graph = load_graph(program, None if core else x)
    with torch.no_grad():
        result = model(x)
    reference = [item.numpy() for item in (result if isinstance(result, tuple) else (result,))]
    assert_close(run(graph, x.numpy()), reference, 1e-5, "imported")
    assert_close(run(optimize(graph), x.numpy()), reference, 1e-5, "optimized")
    return graph


IMAGE = torch.linspace(-3, 3, 2 * 4 * 6 * 8).reshape(2, 4, 6, 8).flip(3)

ACTIVATIONS: Functions = [
    torch.relu, F.relu6, F.silu, torch.sigmoid, torch.tanh, F.hardswish, F.hardsigmoid, F.hardtanh, F.mish, torch.exp,
    lambda x: F.leaky_relu(x, 0.2), lambda x: torch.log(x.abs() + 1), lambda x: torch.sqrt(x * x), torch.neg, torch.erf,
    lambda x: x.clamp(-1, 2), lambda x: x.clamp(max=1), lambda x: x.clamp_min(0), lambda x: x.clamp_max(0.5), F.gelu,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.elu(x, 0.5), F.softplus, lambda x: torch.rsqrt(x * x + 1),
    lambda x: torch.reciprocal(x * x + 1), lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    lambda x: F.prelu(x, torch.tensor([0.3])), lambda x: F.softmax(x, 1), lambda x: F.log_softmax(x, -1),
    torch.sin, torch.cos,
]
ATTENTION: Functions = [
    lambda x: F.scaled_dot_product_attention(x, x + 1, x * 2),
    lambda x: F.scaled_dot_product_attention(x[:, 0], x[:, 1], x[:, 2, :, :5], torch.linspace(-1, 1, 36).view(6, 6)),
    lambda x: F.scaled_dot_product_attention(x, x + 1, x, torch.ones(6, 6).tril() > 0, scale=0.3),
]
ARITHMETIC: Functions = [
    *ATTENTION,
    lambda x: x + 1, lambda x: 2 - x, lambda x: x - 0.5, lambda x: x * x, lambda x: x / 3, lambda x: 3 / (x * x + 1),
    lambda x: x ** 2, lambda x: torch.add(x, x, alpha=2), lambda x: torch.sub(x, torch.ones(8), alpha=0.5),
    lambda x: torch.minimum(x, -x), lambda x: torch.maximum(x, torch.zeros(4, 1, 1)), lambda x: x + torch.arange(8),
    lambda x: x * torch.linspace(0, 1, 4)[:, None, None], lambda x: x @ x.transpose(2, 3),
    lambda x: x @ torch.ones(8, 3),
    lambda x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)), lambda x: x[:, :, 0, 0] @ x[:, :, 0, 0].t(),
    lambda x: torch.mm(x[0, 0], torch.ones(8, 2)),
]
LAYOUT: Functions = [
    lambda x: x.view(2, -1), lambda x: x.reshape(8, -1, 4), lambda x: x.flatten(1, 2),
    lambda x: x.unflatten(1, (2, -1)),
    lambda x: x[:, :1].squeeze(1), lambda x: x[:1, :, :1].squeeze(), lambda x: x.unsqueeze(-1).clone(),
    lambda x: x.permute(0, 2, 3, 1), lambda x: x.transpose(1, -1).contiguous(), lambda x: torch.cat((x, x + 1), 1),
    lambda x: torch.stack((x, -x), 2), lambda x: x[:, 1:-1, ::2], lambda x: x[..., 3], lambda x: x[1],
    lambda x: torch.cat(x.split(3, 3)[::-1], 3), lambda x: x.split([1, 3], 1)[1],
    lambda x: torch.cat(x.chunk(2, 1)[::-1]),
    lambda x: x.unbind(1)[2], lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), lambda x: F.pad(x, (1, -2)),
    lambda x: x.mean((2, 3)), lambda x: (x * x).mean(), lambda x: x.sum(1, keepdim=True),
    lambda x: x.expand(2, 4, 6, 8),
    lambda x: x[:, :1].expand(-1, 3, -1, -1), lambda x: F.interpolate(x, scale_factor=2),
    lambda x: F.interpolate(x, size=(7, 5), mode="nearest"),
    lambda x: F.interpolate(x, size=(9, 9), mode="nearest-exact"),
    lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), lambda x: F.pixel_shuffle(x, 2),
    lambda x: F.interpolate(x, size=(11, 3), mode="bilinear", align_corners=True), lambda x: F.pixel_unshuffle(x, 2),
    lambda x: torch.cat((x, torch.zeros_like(x), x.new_full((2, 1, 6, 8), 0.5)), 1),
    lambda x: x + torch.full_like(x, 3),
    lambda x: x.amax((2, 3)), lambda x: x.amin(1, keepdim=True), lambda x: x.max(1)[0], lambda x: x.max().view(1),
    lambda x: torch.max(x, -x), lambda x: x[:, [2, 0]], lambda x: x[:, :, [[3], [1]], [0, 2, 4, 1]],
    lambda x: torch.index_select(x, 1, torch.tensor([3, 0, 1])),
    lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), lambda x: F.pad(x, (1, 2, 0, 3), mode="replicate"),
    lambda x: F.pad(x[:, 0], (1, 2), mode="reflect"),
    lambda x: F.channel_shuffle(x, 2), lambda x: F.dropout(x, training=False) + 0, lambda x: x.to(torch.float32) * 1,
]
POOLS: Functions = [
    lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    lambda x: F.max_pool2d(x, (2, 3), 1),
    lambda x: F.max_pool2d(x, 2, 1, dilation=2), lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 5, 3, 2, ceil_mode=True, count_include_pad=False), lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, (3, 5), 3, (1, 0), ceil_mode=True), lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    lambda x: F.adaptive_max_pool2d(x, (2, 4)), lambda x: F.adaptive_avg_pool2d(x, (1, 8)),
    lambda x: F.adaptive_avg_pool2d(x, (4, 3)), lambda x: F.adaptive_avg_pool2d(x, (9, 5)),
]
LINES: Functions = [
    lambda x: F.max_pool1d(x[:, 0], 3, 2, 1), lambda x: F.avg_pool1d(x[:, 0], 3, 2, 1, ceil_mode=True),
    lambda x: F.adaptive_avg_pool1d(x[:, 0], 1), lambda x: F.adaptive_max_pool1d(x[:, 0], 4),
    lambda x: F.adaptive_avg_pool1d(x[:, 0], 2), lambda x: F.conv1d(x[:, 0], torch.ones(4, 3, 3), None, 2, 1, 1, 2),
    lambda x: F.conv1d(x[:, 0], torch.ones(4, 6, 4), torch.ones(4), padding="same"),
    lambda x: F.conv_transpose1d(x[:, 0], torch.ones(6, 4, 3), torch.ones(4), 2, 1, 1),
    lambda x: F.interpolate(x[:, 0], scale_factor=2), lambda x: F.interpolate(x[:, 0], size=11, mode="linear"),
    lambda x: F.interpolate(x[:, 0], size=11, mode="nearest-exact"),
]
# Core aten takes these apart into comparisons and indexing, which are not in the operator table.
BEYOND_CORE = [F.mish, F.softplus, *ACTIVATIONS[25:27], LAYOUT[27], *ATTENTION]


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("functions", [ACTIVATIONS, ARITHMETIC, LAYOUT, POOLS, LINES],
                         ids=["activations", "arithmetic", "layout", "pools", "lines"])
def test_functions(functions: Functions, core: bool) -> None:
    if core:
        functions = [function for function in functions if function not in BEYOND_CORE]
    check(Several(functions), IMAGE, core=core)


class Layers(nn.Module):
    def __init__(self, core: bool) -> None:
        super().__init__()
        self.core = core  # there instance norm is a batch-norm in training mode
        self.convs = nn.ModuleList([
            nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, 2, 1, bias=False),
            nn.Conv2d(4, 8, (3, 2), groups=2, dilation=(2, 1)), nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.Conv2d(4, 5, 4, padding="same"), nn.Conv2d(4, 5, 2, padding="valid"),
            nn.ConvTranspose2d(4, 6, 2, 2), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, bias=False),
            nn.ConvTranspose2d(4, 5, (4, 3), (2, 3), (1, 0), dilation=(1, 2))])
        self.norms_of_inputs = nn.ModuleList([
            nn.LayerNorm(8), nn.LayerNorm((6, 8), elementwise_affine=False), nn.GroupNorm(2, 4), nn.GroupNorm(4, 4),
            nn.InstanceNorm2d(4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False, eps=1e-2)])
        self.linears = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 5, bias=False)])
        for norm in self.norms:
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        convs = [conv(x) for conv in self.convs]
        convs[:2] = [norm(y) for norm, y in zip(self.norms, convs[:2], strict=True)]
        return (*convs, *(linear(x) for linear in self.linears), self.linears[0](x[:, 0, 0]),
                *(norm(x) for norm in self.norms_of_inputs if not self.core or not isinstance(norm, nn.InstanceNorm2d)))


@pytest.mark.parametrize("core", [False, True])
def test_layers(core: bool) -> None:
    graph = check(Layers(core), IMAGE, core=core)
    named = {node.name for node in graph if node.op in ("Conv", "Linear")}
    assert named >= {"convs.0", "convs.5", "linears.1"}
    assert {node.path for node in graph if node.op == "BatchNorm"} == {"norms.0", "norms.1"}
    assert {"convs.0.weight", "convs.0.bias", "linears.1.weight"} <= set(graph.constants)


def test_example_kinds_and_modes() -> None:
    """Arrays and tuples serve as examples; a module in training mode is imported in eval mode and put back."""
    model = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    graph = load_graph(model, (IMAGE.numpy(),))
    assert [node.op for node in graph] == ["Conv", "BatchNorm"]
    assert (model.training, model[1].training, model[2].training) == (True, False, True)


def test_unknown_operators_are_taken_apart() -> None:
    """Operators without a rule are decomposed by torch; what has a rule stays whole."""
    graph = check(Several([torch.square, lambda x: F.glu(x, 1), F.silu, lambda x: torch.addcmul(x, x, x)]), IMAGE)
    assert [node.op for node in graph][:2] == ["Pow", "Slice"] and "Silu" in [node.op for node in graph]


def test_computed_weights() -> None:
    """Parametrizations and pruning masks are folded away, whatever they are made of."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.Conv2d(6, 2, 3))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    graph = check(model, IMAGE)
    assert [node.inputs[1] for node in graph] == ["0.weight", "1.weight"]
    assert np.count_nonzero(graph.constants["1.weight"]) == 54


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_becomes_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU())
    graph = load_graph(model.to(dtype), IMAGE.to(dtype))
    reference = model.float()(IMAGE.to(dtype).float()).detach().numpy()
    assert_close(run(graph, IMAGE.to(dtype).float().numpy()), [reference], 1e-5)


def test_results_in_a_dictionary() -> None:
    class Mapping(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"a": x + 1, "b": [x * 2, None]}

    graph = load_graph(Mapping(), IMAGE)
    assert graph.outputs == ["output0", "output1"]


def test_shared_module_has_unique_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu = nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.conv(self.relu(self.conv(x)))) + 1

    graph = check(Twice(), IMAGE)
    assert [node.name for node in graph] == ["conv", "relu", "conv.1", "relu.1", "add"]
    assert [name for name in graph.constants if "conv" in name] == ["conv.weight", "conv.bias"]


def test_outputs_that_are_inputs_or_repeat() -> None:
    graph = check(Several([lambda x: x, torch.relu, lambda x: x]), IMAGE)
    assert graph.outputs == ["output0", "output1", "output2"]


def test_unsupported_operators_are_all_listed() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.LPPool2d(2, 2))
            self.up = nn.Upsample(scale_factor=2, mode="bicubic")

        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(self.up(torch.relu(self.inner(x))), 1)

    with pytest.raises(UnsupportedOperatorError) as caught:
        load_graph(Strange(), IMAGE)
    text = str(caught.value)
    assert "conv1d, conv2d" in text.split("supported are")[1]
    assert "cumsum" in text and "bicubic" in text and "'up" in text and "inner.1" in text


def test_bad_models() -> None:
    with pytest.raises(ModelError, match="example"):
        load_graph(nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError, match="capture"):
        load_graph(nn.Conv2d(5, 4, 1), IMAGE)
    with pytest.raises(ModelError, match="floating point"):
        load_graph(Several([lambda x: x + 1]), torch.ones(1, 2, dtype=torch.int64))
    model = nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN.*weight"):
        load_graph(model, IMAGE)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(nn.Conv2d(4, 4, 1), (IMAGE,), dynamic_shapes=({0: batch},))
    with pytest.raises(DynamicShapeError):
        load_graph(program)
    training = torch.export.export(nn.BatchNorm2d(4).train(), (IMAGE,))
    with pytest.raises(ModelError, match="eval"):
        load_graph(training)


def test_every_rule_is_known_to_torch() -> None:
    """A row of the importer's table that no aten operator can reach is a typing mistake."""
    assert [name for name in RULES if not hasattr(torch.ops.aten, name)] == []
    assert np.isfinite(IMAGE.numpy()).all()
