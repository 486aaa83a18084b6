"""Reweighted regularisation: its gradient, what it removes, how it is steered, and that it resumes to the bit."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.errors import PlanError, SelectorError, TrainingError  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import Pruner, Reweighted, module_layers  # noqa: E402
from blockpunch.schemes import REGULARITIES, Scheme  # noqa: E402

PRUNING = [name for name, rule in REGULARITIES.items() if rule.prunes]
MIXED = {"0": ("pattern", 3), "3": ("block-punched:4x2", 3), "6": ("filter", 2), "9": ("unstructured", 4),
         "13": ("block:4x4", 2)}


def network():
    torch.manual_seed(3)
    torch.set_num_threads(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 12), nn.Linear(12, 4))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        labels = torch.randint(0, 4, (16,), generator=generator)
        yield torch.randn(16, 3, 8, 8, generator=generator) + labels[:, None, None, None] - 1.5, labels


def train(model, pruner, count, seed=0, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model.train()
    for images, labels in batches(count, seed):
        (nn.functional.cross_entropy(model(images), labels) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return optimizer


def charge(weight, labels, reference, epsilon):
    """Per grouping: the sum over groups of (number of weights) * s / (s' + epsilon), the slow and plain way."""
    total = torch.zeros((), dtype=torch.float64)
    for group in np.unique(labels):
        member = weight[torch.from_numpy(labels == group)].double()
        size = member.square().mean()
        total = total + len(member) * size / (size.detach() + epsilon * reference)
    return total


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("conv_groups", [1, 2])
def test_value_and_gradient_against_loops_over_all_groups(name, conv_groups):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, groups=conv_groups), nn.Conv2d(8, 5, 1))
    plan = Plan.per_layer(module_layers(model), {"0": (name, 2), "1": ("unstructured", 2)})
    pruner = Pruner(model, plan, method=Reweighted(steps=10, strength=0.01, epsilon=0.2), zero_dead=False)
    value = pruner.penalty()
    value.backward()
    expected, count = torch.zeros((), dtype=torch.float64), sum(layer.weights for layer in module_layers(model))
    weights = [model[index].weight.detach().clone().requires_grad_() for index in (0, 1)]
    for weight, scheme, groups in zip(weights, (Scheme(name), Scheme("unstructured")), (conv_groups, 1), strict=True):
        groupings = scheme.penalty_groupings(weight.detach().numpy(), conv_groups=groups)
        reference = float(weight.detach().double().square().mean())
        terms = [charge(weight, labels, reference, 0.2) for labels in groupings]
        expected = expected + 0.01 * sum(terms) / len(terms) / count
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip((model[0], model[1]), weights, strict=True):
        assert torch.allclose(mine.weight.grad, theirs.grad.float(), rtol=1e-4, atol=1e-9)


def test_without_epsilon_the_penalty_is_the_cost_of_all_groups_that_stand():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(7, 9))
    plan = Plan.per_layer(module_layers(model), {"0": ("filter", 2), "1": ("block-punched:8x4", 2)})
    with torch.no_grad():
        model[1].weight[:, 4:] *= 1e-9  # half of the layer's groups are as good as gone
    settings = Reweighted(steps=1, strength=0.01, epsilon=1e-9, cost={"0": 3.0, "1": 6.0, "2": 1.0})
    value = Pruner(model, plan, method=settings, example=None, zero_dead=False).penalty()
    assert value.item() == pytest.approx(0.01 * (0.3 + 0.6 / 2), rel=1e-4), "layer 2 is dense: not charged"


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
                                       lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, nesterov=True),
                                       lambda p: torch.optim.AdamW(p, 2e-3)])
def test_groups_that_the_loss_needs_stay_though_they_are_small(optimizer):
    """A loss that wants some small groups as they are: magnitude would remove those, the penalty finds the others."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 1))
    layers = module_layers(model)
    plan = Plan.per_layer(layers, {"0": ("block-punched:8x4", 3), "1": ("block-punched:4x4", 3)})
    needed = {}
    for name, module in (("0", model[0]), ("1", model[1])):
        (labels,) = plan.layers[name].scheme.groupings(tuple(module.weight.shape))
        chosen = torch.from_numpy(labels % 3 == 1)
        with torch.no_grad():
            module.weight[chosen] *= 0.5
        needed[name] = chosen
    targets = {name: model[int(name)].weight.detach().clone() for name in needed}
    pruner = Pruner(model, plan, method=Reweighted(steps=600, target_rate=3), zero_dead=False)
    steps = optimizer(model.parameters())
    for _ in range(600):
        loss = sum(((model[int(n)].weight - targets[n])[chosen]).square().sum() for n, chosen in needed.items())
        (loss + pruner.penalty()).backward()
        steps.step()
        steps.zero_grad()
        pruner.step()
    right = sum(int((pruner.masks[name] & chosen).sum()) for name, chosen in needed.items())
    assert pruner.finalize_().rate == pytest.approx(3, rel=0.02)
    assert right / sum(int(chosen.sum()) for chosen in needed.values()) > 0.98
    assert all(module.weight.isfinite().all() for module in model)


def test_a_mixed_plan_reaches_a_rate_for_the_whole_network_and_obeys_every_scheme():
    model = network()
    plan = Plan.per_layer(module_layers(model), MIXED)
    pruner = Pruner(model, plan, method=Reweighted(steps=150, target_rate=2.5, checks=30))
    seen = []
    assert not pruner.pruned and pruner.masks == {} and pruner.penalty().item() > 0
    with pytest.raises(TrainingError, match="not come to its end"):
        pruner.finalize_()
    optimizer = train(model, pruner, 150)
    assert pruner.pruned and pruner.penalty().item() == 0
    seen = {name: mask.clone() for name, mask in pruner.masks.items()}
    train(model, pruner, 10, optimizer=optimizer)
    report = pruner.finalize_()
    assert report.rate == pytest.approx(2.5, rel=0.05)
    assert len({round(count.rate, 1) for count in report.layers if count.scheme != "dense"}) > 2
    for layer in module_layers(model):
        if layer.name in MIXED:
            kept = model.get_submodule(layer.name).weight.detach() != 0
            assert torch.equal(kept, seen[layer.name]), "what went stays away"
            plan.layers[layer.name].scheme.check(kept.numpy(), conv_groups=layer.conv_groups)


def test_without_a_target_the_plan_gives_each_layer_its_rate():
    model = network()
    pruner = Pruner(model, Plan.per_layer(module_layers(model), MIXED), method=Reweighted(steps=60))
    train(model, pruner, 60)
    for count in pruner.finalize_().layers:
        assert count.rate == pytest.approx(MIXED[count.name][1] if count.name in MIXED else 1, rel=0.15)


def test_a_fixed_strength_makes_all_rates_an_outcome():
    rates = []
    for strength in (0.01, 3.0):
        model = network()
        pruner = Pruner(model, Plan.per_layer(module_layers(model), MIXED),
                        method=Reweighted(steps=150, strength=strength))
        train(model, pruner, 150)
        rates.append(pruner.finalize_().rate)
    assert 1 <= rates[0] < 1.3 < rates[1]


def test_a_costly_layer_loses_more():
    shares = []
    for dear in ("0", "1"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 8, 3))
        plan = Plan.per_layer(module_layers(model), {"*": ("block-punched:4x2", 2)})
        cost = {"0": 1.0, "1": 1.0, dear: 4.0}
        pruner = Pruner(model, plan, method=Reweighted(steps=100, target_rate=2, cost=cost), zero_dead=False)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(100):
            pruner.penalty().backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        layers = pruner.finalize_().layers
        total = sum(cost[count.name] * count.kept / count.weights for count in layers) / 5
        assert total == pytest.approx(1 / 2, abs=0.02), "the rate is one of the costs"
        shares.append({count.name: count.kept / count.weights for count in layers})
    assert shares[0]["0"] < shares[0]["1"] and shares[1]["1"] < shares[1]["0"]


def test_dead_filters_take_bias_and_batch_norm_along_though_no_example_is_given():
    model = network()
    model[7].bias.data.fill_(1.0)
    pruner = Pruner(model, Plan.per_layer(module_layers(model), {"6": ("filter", 3)}), method=Reweighted(steps=30))
    optimizer = train(model, pruner, 30)
    train(model, pruner, 5, optimizer=optimizer)
    dead = ~pruner.masks["6"].flatten(1).any(1)
    assert dead.sum() == 8
    for parameter in (model[6].bias, model[7].weight, model[7].bias):
        assert not parameter.detach()[dead].any() and parameter.detach()[~dead].all()


def state_of(model, optimizer, pruner):
    return copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                          "pruner": pruner.state_dict()})


@pytest.mark.parametrize("stop_at", [1, 17, 40, 43])
def test_a_resumed_loop_ends_with_the_same_bits(stop_at):
    def start():
        model = network()
        return model, Pruner(model, Plan.per_layer(module_layers(model), MIXED),
                             method=Reweighted(steps=40, target_rate=2.5, checks=10))
    model, pruner = start()
    optimizer = train(model, pruner, stop_at)
    saved = state_of(model, optimizer, pruner)
    train(model, pruner, 50 - stop_at, seed=1, optimizer=optimizer)

    again, resumed = start()
    for parameter in again.parameters():
        parameter.data.mul_(1.7)  # nothing of the start may matter
    resumed.load_state_dict(saved["pruner"])
    again.load_state_dict(saved["model"])
    other = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
    other.load_state_dict(saved["optimizer"])
    train(again, resumed, 50 - stop_at, seed=1, optimizer=other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert pruner.state_dict().keys() == resumed.state_dict().keys()
    assert all(torch.equal(a, resumed.state_dict()[key]) for key, a in pruner.state_dict().items())


def test_mixed_precision_and_averaged_weights():
    model = network()
    pruner = Pruner(model, Plan.per_layer(module_layers(model), MIXED), method=Reweighted(steps=20, target_rate=2))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for images, labels in batches(25):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels) + pruner.penalty()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        average.update_parameters(model)
    assert average.module[3].weight.detach()[~pruner.masks["3"]].any(), "the average still remembers"
    pruner.apply_to_(average.module)
    assert not average.module[3].weight.detach()[~pruner.masks["3"]].any()
    assert torch.equal(average.module[3].weight != 0, model[3].weight != 0)


def test_a_wrapped_model_is_looked_through():
    model = network()
    pruner = Pruner(torch.compile(nn.DataParallel(model)), Plan.per_layer(module_layers(model), MIXED))
    assert pruner.model is model


DISTRIBUTED = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
sys.path.insert(0, sys.argv[1])
from test_reweighted import MIXED, Plan, Pruner, Reweighted, batches, module_layers, network
rank = int(sys.argv[3])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model = network()
if rank:
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter))  # until DistributedDataParallel takes those of rank 0
early = Pruner(model, Plan.per_layer(module_layers(model), MIXED))
early.step()
wrapped = nn.parallel.DistributedDataParallel(network())
pruner = Pruner(wrapped, Plan.per_layer(module_layers(wrapped.module), MIXED),
                method=Reweighted(steps=12, target_rate=2.5, checks=6))
optimizer = torch.optim.SGD(wrapped.parameters(), 0.05, momentum=0.9)
for images, labels in batches(16, seed=rank):
    (nn.functional.cross_entropy(wrapped(images), labels) + pruner.penalty()).backward()
    optimizer.step()
    optimizer.zero_grad()
    pruner.step()
pruner.finalize_()
for masks in (early.masks, pruner.masks, dict(wrapped.module.named_parameters())):
    own = torch.cat([mask.flatten().double() for mask in masks.values()]).detach()
    gathered = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(gathered, own)
    assert torch.equal(*gathered)
assert not all(m.all() for m in pruner.masks.values())
dist.destroy_process_group()
print("same on both ranks", flush=True)
os._exit(0)  # torch's gloo threads now and then abort an ordinary exit, after the group is destroyed
"""


def test_masks_are_the_same_on_every_rank(tmp_path):
    command = [sys.executable, "-c", DISTRIBUTED, str(Path(__file__).parent), str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
             for rank in range(2)]
    for rank in ranks:
        output, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0 and "same on both ranks" in output, errors[-3000:]


def test_targets_out_of_reach_say_how_near_and_who_holds_them_back():
    model = network()
    plan = Plan.per_layer(module_layers(model), {"3": ("block-punched:4x2", 2)})
    with pytest.raises(PlanError, match=r"a rate of 4 is out of reach: at most 1\.72 is, as '6' \(dense\) keeps"):
        Pruner(model, plan, method=Reweighted(steps=5, target_rate=4))


def test_faults():
    model = network()
    plan = Plan.per_layer(module_layers(model), MIXED)
    for bad in ({"steps": 0}, {"steps": 5, "target_rate": 0.5}, {"steps": 5, "target_rate": 2, "strength": 1.0},
                {"steps": 5, "strength": float("nan")}):
        with pytest.raises(TrainingError):
            Reweighted(**bad)
    with pytest.raises(SelectorError, match="costs do not fit"):
        Pruner(model, plan, method=Reweighted(steps=5, target_rate=2, cost={"0": 1.0}))
    with pytest.raises(PlanError, match="cost of layer '3' is 0, not a number above 0"):
        costs = {layer.name: 0 if layer.name == "3" else 1 for layer in module_layers(model)}
        Pruner(model, plan, method=Reweighted(steps=5, target_rate=2, cost=costs))
    with pytest.raises(PlanError, match="prunes no layer"):
        Pruner(model, Plan.per_layer(module_layers(model), {}), method=Reweighted(steps=5))
    pruner = Pruner(model, plan, method=Reweighted(steps=4, checks=4))
    model[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"layer '3'.*not finite after 1 steps"):
        pruner.step()
    other = Pruner(network(), Plan.per_layer(module_layers(model), {"3": ("filter", 2)}), method=Reweighted(steps=4))
    with pytest.raises(TrainingError, match="another plan"):
        other.load_state_dict(pruner.state_dict())
    with pytest.raises(TrainingError, match="another model or plan"):
        Pruner(network(), plan).load_state_dict(pruner.state_dict())
