"""Recovery: it learns, the masks hold, a killed run ends with the bits of an unbroken one, faults lose nothing."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from blockpunch.errors import OutputError, TrainingError  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import Gradual, Pruner, Reweighted, module_layers  # noqa: E402
from blockpunch.pruning.recover import Recipe, distill, fine_tune  # noqa: E402


def network():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
                         nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(16, 16, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def data(count=256):
    """Images of four kinds, told apart by where they are bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 3, 10, 10, generator=generator)
    for index, label in enumerate(labels):
        images[index, :, 5 * (label // 2):5 * (label // 2) + 5, 5 * (label % 2):5 * (label % 2) + 5] += 1
    return images, labels


class Loader:
    """A loader that draws order and noise from the global generators, batch by batch."""

    def __init__(self, size=16):
        self.images, self.labels = data()
        self.size = size

    def __len__(self):
        return len(self.images) // self.size

    def __iter__(self):
        order = torch.randperm(len(self.images))
        for start in range(0, len(order), self.size):
            index = order[start:start + self.size]
            yield self.images[index] + 0.1 * torch.randn(len(index), 3, 10, 10), self.labels[index]


def pruned(model=None, rate=3, method=None):
    model = model or network()
    return Pruner(model, Plan.uniform(module_layers(model), "block-punched:4x4", rate), method=method)


def accuracy(model):
    images, labels = data()
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    model = network()
    fine_tune(pruned(model, 1), Loader(), recipe=Recipe(epochs=6, lr=0.1, warmup_steps=5))
    assert accuracy(model) > 0.95
    return model


@pytest.mark.parametrize("optimizer, lr", [("sgd", 0.05), ("adam", 0.01)])
def test_fine_tuning_recovers_and_the_masks_hold(trained, optimizer, lr):
    pruner = pruned(copy.deepcopy(trained), 4)
    pruner.apply_()
    before, seen = accuracy(pruner.model), []
    result = fine_tune(pruner, Loader(), recipe=Recipe(epochs=4, lr=lr, optimizer=optimizer, warmup_steps=4),
                       validate=accuracy, progress=seen.append)
    assert result.scores[-1] >= max(0.95, before) and result.losses[-1] < result.losses[0]
    assert result.steps == 64 and len(seen) == 64 + 4 and seen[-1].score == result.scores[-1]
    for name, mask in pruner.masks.items():
        assert not pruner.model.get_submodule(name).weight.detach()[~mask].any()
    assert seen[3].rate == pytest.approx(lr, rel=0.02) and seen[-2].rate < 0.01 * lr


@pytest.mark.parametrize("batches", [Loader(), DataLoader(TensorDataset(data()[0]), 16, shuffle=True)])
def test_distillation_needs_no_labels(trained, batches):
    pruner = pruned(copy.deepcopy(trained), 4)
    pruner.apply_()
    broken = accuracy(pruner.model)
    result = distill(pruner, trained, batches, recipe=Recipe(epochs=4, lr=5e-3, optimizer="adam", warmup_steps=4))
    assert accuracy(pruner.model) >= max(0.95, broken) and result.losses[-1] < 0.5 * result.losses[0]
    assert {c.name: round(c.rate) for c in pruner.report().layers} == {"0": 1, "3": 4, "7": 4, "11": 1}


def test_labels_and_teacher_together_in_bfloat16(trained):
    pruner = pruned(copy.deepcopy(trained), 4)
    fine_tune(pruner, Loader(), teacher=trained, features=["3"], recipe=Recipe(epochs=3, lr=0.05, bfloat16=True))
    assert accuracy(pruner.model) > 0.95
    assert pruner.model[3].weight.dtype == torch.float32


@pytest.fixture
def traced(monkeypatch):
    """``torch.compile`` with its tracing, but without a C++ compiler; counts the graphs that it traced."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=backend))
    yield graphs
    torch._dynamo.reset()


def test_a_compiled_network_learns_the_same(trained, traced):
    ends = []
    for compiled in (False, True):
        pruner = pruned(copy.deepcopy(trained), 4)
        fine_tune(pruner, Loader(), teacher=trained, recipe=Recipe(epochs=2, lr=0.05, bfloat16=True, compile=compiled))
        ends.append(final_bits(pruner.model))
        assert len(traced) == 2 * compiled  # the network and its teacher, once each
    assert ends[0].keys() == ends[1].keys()
    for name, bits in ends[0].items():
        assert torch.allclose(bits.float(), ends[1][name].float(), rtol=0.05, atol=0.02), name


def test_what_cannot_be_compiled_is_told(trained, monkeypatch):
    real = torch.compile
    with pytest.raises(TrainingError, match="layers of a compiled network"):
        distill(pruned(), trained, Loader(), recipe=Recipe(epochs=1, compile=True))
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=broken))
    with pytest.raises(TrainingError, match=r"torch.compile cannot compile the network.*no such processor") as info:
        fine_tune(pruned(), Loader(), recipe=Recipe(epochs=1, compile=True))
    assert "without compile" in info.value.fix
    torch._dynamo.reset()


def broken(graph, _):
    raise OSError("no such processor")


def test_a_probability_output_is_compared_as_one(trained):
    teacher = nn.Sequential(trained, nn.Softmax(1))
    student = pruned(nn.Sequential(copy.deepcopy(trained), nn.Softmax(1)))
    result = distill(student, teacher, Loader(), recipe=Recipe(epochs=2, lr=5e-3, optimizer="adam"))
    assert result.losses[-1] < result.losses[0] and accuracy(student.model) > 0.9


def settings(checkpoint, optimizer="sgd"):
    return {"recipe": Recipe(epochs=3, lr=0.05, optimizer=optimizer, warmup_steps=4, seed=11), "checkpoint": checkpoint,
            "checkpoint_seconds": 0.0}


def final_bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("stop_at", [1, 16, 17, 23, 47])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, optimizer, stop_at):
    whole = pruned()
    fine_tune(whole, Loader(), **settings(None, optimizer))

    def interrupt(status):
        if status.step == stop_at:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        fine_tune(pruned(), Loader(), progress=interrupt, **settings(tmp_path / "run.safetensors", optimizer))
    torch.manual_seed(99)  # another process, other generators
    again = pruned()
    result = fine_tune(again, Loader(), **settings(tmp_path / "run.safetensors", optimizer))
    assert result.steps == 48 and len(result.losses) == 3 and result.resumed == (stop_at > 1)
    assert same(final_bits(whole.model), final_bits(again.model))
    finished = pruned()
    assert fine_tune(finished, Loader(), **settings(tmp_path / "run.safetensors", optimizer)).steps == 48
    assert same(final_bits(whole.model), final_bits(finished.model)), "a finished run is only read back"


@pytest.mark.parametrize("method", [Reweighted(20, target_rate=2, checks=5), Gradual(20, checks=4)])
@pytest.mark.parametrize("stop_at", [11, 30])
def test_a_method_goes_on_where_it_was_interrupted(tmp_path, method, stop_at):
    whole = pruned(method=method)
    fine_tune(whole, Loader(), **settings(None))
    assert whole.pruned and whole.finalize_().rate > 1.9

    def interrupt(status):
        if status.step == stop_at:
            raise KeyboardInterrupt
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(pruned(method=method), Loader(), progress=interrupt, **settings(path))
    with pytest.raises(TrainingError, match="another run: method differ"):
        fine_tune(pruned(), Loader(), **settings(path))
    again = pruned(method=method)
    assert fine_tune(again, Loader(), **settings(path)).resumed
    assert same(final_bits(whole.model), final_bits(again.model))


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_recover import Loader, fine_tune, pruned, reweighted, settings
pruner = pruned(method=reweighted())
fine_tune(pruner, Loader(), progress=lambda status: print(status.step, flush=True), **settings(sys.argv[2]))
"""


def reweighted():
    return Reweighted(25, target_rate=2, checks=10)


def test_a_killed_process_ends_with_the_same_bits(tmp_path):
    whole = pruned(method=reweighted())
    fine_tune(whole, Loader(), **settings(None))
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)], text=True,
                               stdout=subprocess.PIPE)
    for line in process.stdout:
        if int(line) >= 15 + os.getpid() % 20:  # a moment that nobody chose, before or after the pruning
            break
    time.sleep(0.001 * (os.getpid() % 10))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    again = pruned(method=reweighted())
    result = fine_tune(again, Loader(), **settings(path))
    assert result.resumed and same(final_bits(whole.model), final_bits(again.model))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fine_tune(pruned(), Loader(), recipe=Recipe(epochs=1), checkpoint=path)
    with pytest.raises(TrainingError, match="another run: epochs differ"):
        fine_tune(pruned(), Loader(), recipe=Recipe(epochs=2), checkpoint=path)
    with pytest.raises(TrainingError, match="plan differ"):
        fine_tune(pruned(rate=2), Loader(), recipe=Recipe(epochs=1), checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    with pytest.raises(TrainingError, match="damaged"):
        fine_tune(pruned(), Loader(), recipe=Recipe(epochs=1), checkpoint=path)
    path.write_bytes(b"PK\x03\x04 a pickle or anything else")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        fine_tune(pruned(), Loader(), recipe=Recipe(epochs=1), checkpoint=path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    path, calls = tmp_path / "run.safetensors", []

    def loss(outputs, labels):
        calls.append(1)
        return outputs.sum() * float("nan") if len(calls) == 20 else nn.functional.cross_entropy(outputs, labels)
    pruner = pruned()
    with pytest.raises(TrainingError, match=r"loss function: .*not finite at step 20 of 48; the last good checkpoint"):
        fine_tune(pruner, Loader(), loss=loss, **settings(path))
    assert all(parameter.isfinite().all() for parameter in pruner.model.parameters())
    again = pruned()
    assert fine_tune(again, Loader(), **settings(path)).steps == 48
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


@pytest.mark.parametrize("place", ["weights", "output", "input", "gradient"])
def test_what_is_not_finite_is_named(place):
    class Broken(nn.Module):
        def forward(self, x):
            return x * float("inf") if place == "output" else torch.sqrt(x * 0) + x if place == "gradient" else x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Broken(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    images, labels = data(32)
    if place == "input":
        images[3, 0, 0, 0] = float("nan")
    pruner = Pruner(model, Plan.per_layer(module_layers(model), {}))
    if place == "weights":
        model[0].weight.data[0] = float("inf")
    named = {"weights": "weights of layer '0'", "output": "output of layer '1'", "input": "input of layer '0'",
             "gradient": "gradient of layer '0'"}[place]
    with pytest.raises(TrainingError, match=f"^{named}: the loss or its gradient is not finite at step 1 of 2"):
        fine_tune(pruner, [(images, labels), (images, labels)], recipe=Recipe(epochs=1))


def test_batches_that_do_not_fit_are_told_with_their_shapes():
    images, labels = data(16)
    with pytest.raises(TrainingError, match="label 4 is out of range: the model has 4 classes"):
        fine_tune(pruned(), [(images, labels + 1)])
    with pytest.raises(TrainingError, match="label -1 is out of range"):
        fine_tune(pruned(), [(images, labels - 1)], teacher=network())
    with pytest.raises(TrainingError, match=r"step 1: .*not take the batch \(\[16, 2, 10, 10\] float32, \[16\] int64"):
        fine_tune(pruned(), [(images[:, :2], labels)])
    with pytest.raises(TrainingError, match=r"step 1: .*does not take the batch \(\[16, 3, 10, 10\] float32, \[15\]"):
        fine_tune(pruned(), [(images, labels[1:])])
    with pytest.raises(TrainingError, match="epoch 1: the loader gave no batch"):
        fine_tune(pruned(), Once(0))
    with pytest.raises(TrainingError, match="epoch 2: the loader gave no batch"):
        fine_tune(pruned(), Once(1))


class Once:
    """Claims one batch per epoch but gives them only once, as an iterator in disguise does."""

    def __init__(self, count):
        self.batches = iter([data(16)] * count)

    def __len__(self):
        return 1

    def __iter__(self):
        return self.batches


def test_a_time_budget_ends_the_run():
    result = fine_tune(pruned(), Loader(), recipe=Recipe(epochs=10_000, minutes=0.02))
    assert 1 <= result.steps < 160_000 and result.seconds < 10
    with pytest.raises(TrainingError, match=r"the time is over after \d+ steps, before the network was pruned"):
        fine_tune(pruned(method=Gradual(100_000)), Loader(), recipe=Recipe(epochs=10_000, minutes=0.01))
    with pytest.raises(TrainingError, match="prunes for 33 steps, but there are only 32"):
        fine_tune(pruned(method=Gradual(33)), Loader(), recipe=Recipe(epochs=2))


def test_faults(tmp_path):
    with pytest.raises(TrainingError, match="without labels"):
        fine_tune(pruned(), [data()[0]])
    with pytest.raises(TrainingError, match="no length"):
        fine_tune(pruned(), iter([data()]))
    with pytest.raises(TrainingError, match="empty"):
        fine_tune(pruned(), [])
    with pytest.raises(TrainingError, match="no module 'stem'"):
        distill(pruned(), network(), Loader(), features=["stem"])
    with pytest.raises(OutputError):
        fine_tune(pruned(), [data()], recipe=Recipe(epochs=1), checkpoint=tmp_path / "missing" / "run.safetensors")
    for bad in ({"epochs": 0}, {"lr": -1}, {"lr": float("nan")}, {"optimizer": "lion"}, {"minutes": 0}):
        with pytest.raises(TrainingError):
            Recipe(**bad)
    pruner = pruned()
    pruner.finalize_()
    with pytest.raises(TrainingError, match="finalized"):
        fine_tune(pruner, Loader())
