"""Gradients of weights, image by image, against finite differences of the network's answer."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.pruning import gradients as gradients_module  # noqa: E402
from blockpunch.pruning.gradients import gradients, kept  # noqa: E402
from blockpunch.pruning.layer_errors import layer_errors  # noqa: E402
from blockpunch.pruning.sensitivity import TEMPERATURE  # noqa: E402


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ReLU(),
                         nn.Conv2d(8, 12, (1, 3), dilation=(1, 2)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(12, 5)).eval()


def photos(count=20):
    return list(torch.randn(count, 3, 13, 13, generator=torch.Generator().manual_seed(0)).split(8))


@pytest.mark.parametrize("name", ["0", "2", "4", "8"])
def test_costs_are_those_of_small_changes(name):
    model, images = network().double(), [batch.double() for batch in photos(8)]
    found = gradients(model, images, [name], seed=1)[name]
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
    assert kept(1000) == 256 and kept(10**6) == 128 and kept(10**8) == 0
    monkeypatch.setattr(gradients_module, "FEWEST", 2)
    monkeypatch.setattr(gradients_module, "MEMORY", 4.0 * 12 * 5 * 3)
    found = gradients(network(), photos(), ["0", "8"], seed=0)
    assert set(found) == {"8"} and len(found["8"]._weight) == 3
    assert sum(tensor.requires_grad for tensor in found["8"]._weight) == 0


def test_errors_that_are_felt_more_cost_more():
    model, images = network(), photos(64)
    cells = [("unstructured", 2.0), ("channel", 2.0), ("filter", 3.0)]
    found = layer_errors(model, images, {"4": cells})
    assert found.costs["4"].keys() == found.errors["4"].keys() == found.felt["4"].keys()
    for cell, error in found.errors["4"].items():
        assert found.costs["4"][cell] == pytest.approx(error * found.felt["4"][cell]) and error > 0
    # The same by the other module, which takes other means: of batches, and errors on the same images.
    usual = found.sensitivity["4"]
    assert all(usual / 4 < felt < usual * 4 for felt in found.felt["4"].values())
    found.felt.clear()
    assert found.costs["4"] == {cell: error * usual for cell, error in found.errors["4"].items()}
