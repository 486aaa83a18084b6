"""Gradual magnitude pruning: the cubic, the schemes, the end, and that it resumes."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.errors import PlanError, TrainingError  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import Gradual, Pruner, Reweighted, module_layers  # noqa: E402

CHOICES = {"0": ("unstructured", 4), "2": ("pattern", 4), "4": ("block-punched:4x2", 4), "6": ("filter", 3)}


def network():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3),
                         nn.ReLU(), nn.Conv2d(32, 12, 1))


def start(steps=20, checks=5):
    model = network()
    return model, Pruner(model, Plan.per_layer(module_layers(model), CHOICES), method=Gradual(steps, checks))


def train(model, pruner, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    kept = []
    for _ in range(count):
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        kept.append([layer.kept / layer.weights for layer in pruner.report().layers])
    return kept


def test_the_kept_share_falls_along_a_cubic_and_every_mask_obeys_its_scheme():
    model, pruner = start()
    kept = train(model, pruner, 19)
    assert kept[0] == [1.0] * 4 and not pruner.pruned
    for check in (1, 2, 3):
        wanted = [1 / rate + (1 - 1 / rate) * (1 - check / 5) ** 3 for _, rate in CHOICES.values()]
        assert kept[4 * check - 1] == pytest.approx(wanted, abs=0.05)
    kept += train(model, pruner, 3, seed=1)
    assert pruner.pruned and pruner.finalize_().rate == pytest.approx(3.9, rel=0.05)
    for layer in module_layers(model):
        mask = model.get_submodule(layer.name).weight.detach() != 0
        pruner.plan.layers[layer.name].scheme.check(mask.numpy())


@pytest.mark.parametrize("stop_at", [3, 9, 20])
def test_a_resumed_loop_ends_with_the_same_bits(stop_at):
    model, pruner = start()
    train(model, pruner, stop_at)
    weights, state = {key: value.clone() for key, value in model.state_dict().items()}, pruner.state_dict()
    train(model, pruner, 22 - stop_at, seed=1)
    again, resumed = start()
    resumed.load_state_dict(state)
    again.load_state_dict(weights)
    train(again, resumed, 22 - stop_at, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_it_can_be_ended_early():
    _, pruner = start()
    report = pruner.apply_()
    assert pruner.pruned and [round(layer.rate) for layer in report.layers] == [4, 4, 4, 3]


def test_faults():
    model, pruner = start()
    with pytest.raises(TrainingError, match="at least one step"):
        Gradual(0)
    with pytest.raises(PlanError, match="prunes no layer"):
        Pruner(model, Plan.per_layer(module_layers(model), {}), method=Gradual(5))
    other = Pruner(network(), pruner.plan, method=Reweighted(5))
    with pytest.raises(TrainingError, match="another pruning method"):
        pruner.load_state_dict(other.state_dict())
    with pytest.raises(TrainingError, match="another plan or pruning method"):
        other.load_state_dict(pruner.state_dict())
    with pytest.raises(TrainingError, match=r"belong to a pruning method|another model or plan"):
        Pruner(network(), pruner.plan).load_state_dict(pruner.state_dict())
