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
from blockpunch.pruning import Pruner, module_layers  # noqa: E402
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


def pruned(model=None, rate=3):
    model = model or network()
    return Pruner(model, Plan.uniform(module_layers(model), "block-punched:4x4", rate))


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
@pytest.mark.parametrize("stop_at", [1, 16, 23, 47])
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


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_recover import Loader, fine_tune, pruned, settings
pruner = pruned()
fine_tune(pruner, Loader(), progress=lambda status: print(status.step, flush=True), **settings(sys.argv[2]))
"""


def test_a_killed_process_ends_with_the_same_bits(tmp_path):
    whole = pruned()
    fine_tune(whole, Loader(), **settings(None))
    path = tmp_path / "run.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)], text=True,
                               stdout=subprocess.PIPE)
    for line in process.stdout:
        if int(line) >= 18:
            break
    time.sleep(0.01 * (os.getpid() % 10))  # a moment that nobody chose
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    again = pruned()
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
    with pytest.raises(TrainingError, match=r"not finite at step 20 of 48; the last good checkpoint"):
        fine_tune(pruner, Loader(), loss=loss, **settings(path))
    assert all(parameter.isfinite().all() for parameter in pruner.model.parameters())
    again = pruned()
    assert fine_tune(again, Loader(), **settings(path)).steps == 48
    assert all(parameter.isfinite().all() for parameter in again.model.parameters())


def test_a_time_budget_ends_the_run():
    result = fine_tune(pruned(), Loader(), recipe=Recipe(epochs=10_000, minutes=0.02))
    assert 1 <= result.steps < 160_000 and result.seconds < 10


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
