"""Masks on torch modules: right layers, held by any optimizer, dead filters silent."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.errors import ModelError, PlanError, TrainingError  # noqa: E402
from blockpunch.plan import LayerPlan, Plan  # noqa: E402
from blockpunch.pruning import Pruner, module_layers  # noqa: E402
from blockpunch.schemes import REGULARITIES, Scheme  # noqa: E402

PRUNING = [name for name, rule in REGULARITIES.items() if rule.prunes]


class Net(nn.Module):
    """First convolution, depthwise, grouped, dense 3x3 with batch-norm, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body = nn.ModuleList([nn.Conv2d(8, 12, 3, padding=1, groups=2),
                                   nn.Conv2d(12, 18, 3, padding=1, bias=False)])
        self.norm = nn.BatchNorm2d(18)
        self.fc = nn.Linear(18, 14)
        self.out = nn.Linear(14, 5)

    def forward(self, x):
        x = torch.relu(self.depth(self.first(x)))
        x = self.norm(self.body[1](torch.relu(self.body[0](x))))
        return self.out(torch.relu(self.fc(torch.relu(x).mean((2, 3)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Net()


def test_layers_and_default_plan(net):
    layers = module_layers(net)
    assert [(item.name, item.kind, item.conv_groups) for item in layers] == [
        ("first", "conv", 1), ("depth", "conv", 8), ("body.0", "conv", 2), ("body.1", "conv", 1), ("fc", "linear", 1),
        ("out", "linear", 1)]
    assert set(Plan.uniform(layers, "filter", 2).pruned()) == {"body.0", "body.1", "fc"}


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
                                       lambda p: torch.optim.AdamW(p, 0.01)])
def test_masks_hold_in_any_training_loop(net, name, optimizer):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    plan = Plan.per_layer(module_layers(net), {"*": (name, 3)})
    pruner = Pruner(net, plan, example=torch.zeros(1, 3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "apply_() prunes, not this"
    pruner.apply_()
    optimizer = optimizer(net.parameters())
    for _ in range(4):
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        for layer, mask in pruner.masks.items():
            assert not net.get_submodule(layer).weight.grad[~mask].any()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    for layer in module_layers(net):
        weight, mask = net.get_submodule(layer.name).weight.detach(), pruner.masks[layer.name]
        expected = Scheme(name).mask(before[f"{layer.name}.weight"].numpy(), 3, conv_groups=layer.conv_groups)
        assert np.array_equal(mask.numpy(), expected)
        assert not weight[~mask].any() and weight[mask].all()
        assert not torch.equal(weight, before[f"{layer.name}.weight"] * mask), "the others are trained"
    report = pruner.finalize_()
    assert {count.name: count.kept for count in report.layers} == {
        layer: int(mask.sum()) for layer, mask in pruner.masks.items()}
    net(torch.randn(1, 3, 8, 8)).sum().backward()
    assert net.out.weight.grad[~pruner.masks["out"]].any(), "finalize_() lets go of the gradients"


def test_dead_filters_fall_silent_with_their_batch_norm(net):
    net.norm.bias.data.fill_(1.0)
    plan = Plan.per_layer(module_layers(net), {"body.*": ("filter", 2)})
    pruner = Pruner(net, plan, example=torch.zeros(1, 3, 8, 8))
    pruner.apply_()
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
    for _ in range(3):
        net.train()(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        pruner.step()
    dead = ~pruner.masks["body.1"].flatten(1).any(1)
    assert dead.sum() == 9
    outputs = net.eval().norm(net.body[1](torch.randn(1, 12, 4, 4)))
    assert not outputs[:, dead].any() and outputs[:, ~dead].any()
    assert not net.body[0].bias.detach()[~pruner.masks["body.0"].flatten(1).any(1)].any()


def test_dead_filters_without_an_example_say_so(net, caplog):
    plan = Plan.per_layer(module_layers(net), {"body.1": ("filter", 2)})
    Pruner(net, plan)
    assert "example=" in caplog.text
    caplog.clear()
    Pruner(net, plan, zero_dead=False).apply_()
    assert not caplog.text and net.norm.weight.detach().all()


def test_masks_are_saved_and_loaded(net):
    plan = Plan.uniform(module_layers(net), "block-punched:4x4", 2)
    first, second = Pruner(net, plan), Pruner(Net(), plan)
    assert any(not torch.equal(first.masks[key], second.masks[key]) for key in first.masks)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(first.masks[key], second.masks[key]) for key in first.masks)
    with pytest.raises(TrainingError, match="another model or plan"):
        Pruner(net, Plan.uniform(module_layers(net), "filter", 2)).load_state_dict({})


def test_faults(net):
    with pytest.raises(PlanError, match="no layer 'stem'"):
        Pruner(net, Plan({"stem": LayerPlan(Scheme("filter"), 2)}))
    plan = Plan.uniform(module_layers(net), "filter", 2)
    net.body[0].weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"layer 'body.0'.*infinite"):
        Pruner(net, plan)


def test_shared_weights_have_one_mask():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    net[2].weight = net[1].weight
    pruner = Pruner(net, Plan.per_layer(module_layers(net), {"1": ("unstructured", 2), "2": ("unstructured", 2)}))
    assert list(pruner.masks) == ["1"] and pruner.apply_().layers[2].rate == 2
    with pytest.raises(PlanError, match="share one weight"):
        Pruner(net, Plan.per_layer(module_layers(net), {"1": ("unstructured", 2)}))
