"""Layers behind global means are fitted to the maps before the means."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.graph.torch_import import from_torch  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import layer_errors, means, module_layers, oneshot  # noqa: E402
from blockpunch.pruning.graph_module import GraphModule  # noqa: E402
from blockpunch.pruning.means import MeansWatched, unpooled  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Pooled(nn.Module):
    """A classifier behind a mean that is taken in one of the usual ways."""

    def __init__(self, way, channels=32, classes=24):
        super().__init__()
        self.way, self.conv = way, nn.Conv2d(3, channels, 3, padding=1)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5)
        self.head = nn.Conv2d(channels, classes, 1) if way == "conv" else nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        if self.way == "conv":
            return self.head(self.pool(x)).flatten(1)
        x = {"mean": lambda: x.mean((2, 3)), "module": lambda: self.drop(torch.flatten(self.pool(x), 1)),
             "kept": lambda: x.mean((2, 3), keepdim=True)[:, :, 0, 0],
             "kernel": lambda: nn.functional.avg_pool2d(x, x.shape[-1]).squeeze(),
             "most": lambda: x.amax((2, 3))}[self.way]()
        return self.head(x)


def shown(model, x, images):
    """What the head is fitted to, and its input."""
    seen = []
    hook = model.get_submodule("head").register_forward_pre_hook(
        lambda layer, inputs: seen.append((unpooled(layer, inputs[0], images), inputs[0])))
    with torch.no_grad(), MeansWatched():
        model(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("way", ["mean", "module", "kept", "kernel", "conv"])
@pytest.mark.parametrize("imported", [False, True])
def test_means_are_recognised_whatever_computes_them(way, imported):
    model, x = Pooled(way).eval(), torch.randn(5, 3, 6, 6)
    wanted = torch.relu(model.conv(x)).detach()
    if imported:
        model = GraphModule(from_torch(model, x)).eval()
        model.head = model.get_submodule("head")
    found, mean = shown(model, x, images=5)
    assert mean.shape[:2] == wanted.shape[:2]
    assert found.shape == (wanted.shape if way == "conv" else wanted.permute(0, 2, 3, 1).shape)
    assert torch.allclose(found if way == "conv" else found.permute(0, 3, 1, 2), wanted, atol=1e-6)


def test_other_pools_large_maps_and_many_images_are_left_alone():
    x = torch.randn(5, 3, 6, 6)
    found, given = shown(Pooled("most").eval(), x, images=5)
    assert found is given
    found, given = shown(Pooled("mean").eval(), torch.randn(5, 3, 12, 12), images=5)
    assert found is given  # 144 positions
    found, given = shown(Pooled("mean").eval(), x, images=10_000)
    assert found is given  # the means are enough for 32 columns


def scenes(count, objects, seed):
    """Images of so many small things in random places."""
    torch.manual_seed(seed)
    x = torch.zeros(count, 3, 8, 8)
    for image in x:
        for _ in range(objects):
            row, column = torch.randint(0, 7, (2,))
            image[:, row:row + 2, column:column + 2] += 2 * torch.randn(3, 2, 2)
    return x


def only_means(layer, x, images):
    return x


def wide():
    torch.manual_seed(0)
    return Pooled("module", channels=256, classes=64).eval()


def lost(shows, images, others):
    """Squared error of the outputs for ``others`` over their variance, when the head is fitted to what ``shows``."""
    model, pruned = wide(), wide()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(means, "unpooled", shows)
        plan = Plan.uniform(module_layers(model), "block-punched:4x1", 3, only=["head"])
        oneshot.prune_oneshot_(pruned, plan, images)
    with torch.no_grad():
        wanted, got = model(others), pruned(others)
    return float((wanted - got).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_a_classifier_from_few_images_does_better_on_others():
    images, others = scenes(36, 12, seed=1), scenes(400, 12, seed=2)
    assert lost(unpooled, [images], others) < 0.95 * lost(only_means, [images], others)
    assert lost(unpooled, images.split(7), others) == pytest.approx(lost(unpooled, [images], others), rel=0.05)


def test_images_held_out_decide_for_means_where_positions_say_little():
    images, others = scenes(128, 1, seed=1), scenes(400, 1, seed=2)
    assert lost(unpooled, [images], others) == lost(only_means, [images], others)


@pytest.mark.parametrize(("count", "objects", "gains"), [(36, 12, True), (128, 1, False)])
def test_layer_errors_take_the_better_of_both(count, objects, gains):
    images, candidates = scenes(count, objects, seed=1), {"head": [("block-punched:4x1", 3.0)]}
    both = layer_errors.layer_errors(wide(), [images], candidates).errors["head"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_errors, "unpooled", only_means)
        alone = layer_errors.layer_errors(wide(), [images], candidates).errors["head"]
    assert (both["block-punched:4x1", 3.0] < alone["block-punched:4x1", 3.0]) == gains
    assert both["block-punched:4x1", 3.0] <= alone["block-punched:4x1", 3.0]
