"""Gradients of weights, image by image, against finite differences of the network's answer."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.pruning import gradients as gradients_module  # noqa: E402
from blockpunch.pruning.gradients import TEMPERATURE, gradients, kept  # noqa: E402
from blockpunch.pruning.layer_errors import layer_errors  # noqa: E402


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ReLU(),
                         nn.Conv2d(8, 12, (1, 3), dilation=(1, 2)), nn.ReLU(), nn.AdaptiveAvgPool2d(3),
                         nn.Conv2d(12, 16, (2, 1), padding=(1, 0), stride=(2, 1), dilation=(2, 1)), nn.ReLU(),
                         nn.Flatten(2), nn.Linear(6, 20), nn.ReLU(), nn.Flatten(), nn.Linear(320, 5)).eval()


def photos(count=20):
    return list(torch.randn(count, 3, 13, 13, generator=torch.Generator().manual_seed(0)).split(8))


@pytest.mark.parametrize(("name", "split"), [("0", False), ("2", False), ("4", False), ("7", True), ("10", False),
                                             ("13", True)])
def test_costs_are_those_of_small_changes(name, split):
    """Large layers on small maps are kept as factors, which comes to the same."""
    model, images = network().double(), [batch.double() for batch in photos(8)]
    found = gradients(model, images, [name], seed=1)[name]
    assert len(found) == 8 and all((inputs is not None) == split for _, inputs in found._weight)
    layer = model.get_submodule(name)
    torch.manual_seed(7)
    weight = layer.weight.detach() + 1e-5 * torch.randn_like(layer.weight)
    shift = 1e-5 * torch.randn(len(weight), dtype=torch.float64)

    cost = found.cost(weight, shift)  # of the dense layer, which changes below

    def answers():  # of each image by itself: the same draws for the same dense answers
        generator = torch.Generator().manual_seed(1)
        batch = torch.cat(images)
        scores = model(batch)
        roots = (dense / TEMPERATURE).softmax(1).sqrt()
        drawn = roots * torch.randn(roots.shape, generator=generator)
        mixture = drawn - roots.square() * drawn.sum(1, keepdim=True)
        return (mixture * scores / TEMPERATURE).sum(1)

    with torch.no_grad():
        dense = model(torch.cat(images)).float()
        before = answers()
        layer.weight.copy_(weight), layer.bias.add_(shift)
        moved = answers() - before
    assert cost == pytest.approx(float(moved.square().mean()), rel=0.02)


def test_only_what_fits_is_kept(monkeypatch):
    assert kept(1000) == 256 and kept(10**6) == 128 and kept(10**8) == 32
    monkeypatch.setattr(gradients_module, "FEWEST", 2)
    monkeypatch.setattr(gradients_module, "MEMORY", 4.0 * (320 + 5) * 3)
    found = gradients(network(), photos(), ["4", "13"], seed=0)
    assert (len(found["4"]), len(found["13"])) == (3, 3)
    monkeypatch.setattr(gradients_module, "MEMORY", 1.0)
    assert len(gradients(network(), photos(), ["4"], seed=0)["4"]) == 2
    assert not any(tensor.requires_grad for pair in found["13"]._weight for tensor in pair)


def test_a_layer_that_alone_is_pruned_costs_what_it_does_to_the_answer(monkeypatch):
    """The Fisher form of a change is twice its divergence, where changes are not too large."""
    monkeypatch.setattr(gradients_module, "TEMPERATURE", 1.0)
    model, images, ratios, costs = network(), photos(64), [], []
    wanted = torch.cat([model(batch) for batch in images]).log_softmax(1).detach()
    for name in ("0", "2", "4", "7", "10", "13"):
        weight = model.get_submodule(name).weight
        dense, pruned = weight.detach().clone(), weight.detach() * (weight.abs() > weight.abs().quantile(0.3))
        costs.append(gradients(model, images, [name], seed=0)[name].cost(pruned, torch.zeros(len(weight))))
        with torch.no_grad():
            weight.copy_(pruned)
            got = torch.cat([model(batch) for batch in images]).log_softmax(1)
            weight.copy_(dense)
        ratios.append(2 * float(nn.functional.kl_div(got, wanted, log_target=True, reduction="batchmean")) / costs[-1])
    assert min(ratios) > 1 / 2.5 and max(ratios) < 2.5
    assert max(costs) > 4 * min(costs)


def test_a_layer_fitted_too_well_costs_what_it_does_on_other_images(monkeypatch):
    """Few images, many inputs: on those that a weight is fitted to it does far less harm than on others."""
    generator, given = torch.Generator().manual_seed(0), []
    model, mixed = nn.Sequential(nn.Linear(256, 32)).eval(), torch.randn(200, 256, generator=generator) / 14
    few, others = (list((torch.randn(n, 200, generator=generator) @ mixed).split(32)) for n in (128, 2048))

    def noted(self, weight, shift, cost=gradients_module.Gradients.cost):
        given.append((weight, shift, cost(self, weight, shift)))
        return given[-1][2]

    monkeypatch.setattr(gradients_module.Gradients, "cost", noted)
    cost = layer_errors(model, few, {"0": [("unstructured", 2.0)]}).costs["0"]["unstructured", 2.0]
    weight, shift, fitted = given[0]
    found = gradients(model, others, ["0"], seed=1)["0"].cost(weight, shift)
    assert fitted < 0.67 * found
    assert cost == pytest.approx(found, rel=0.33)


def test_a_layer_that_the_answer_does_not_depend_on_costs_nothing():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

        def forward(self, x):
            self.idle(x)
            return self.used(x).mean((2, 3))

    costs = layer_errors(Idle().eval(), photos(), {n: [("unstructured", 2.0)] for n in ("used", "idle")}).costs
    assert costs["used"]["unstructured", 2.0] > 0 == costs["idle"]["unstructured", 2.0]
