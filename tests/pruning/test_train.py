"""The ready trainer: data sets in every layout, labels or none, budgets, and what comes out as an ONNX file."""

import json
import pickle

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
from onnx import numpy_helper  # noqa: E402
from PIL import Image  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from blockpunch.build import compile as compile_model  # noqa: E402
from blockpunch.cli.app import app  # noqa: E402
from blockpunch.data import Preprocess  # noqa: E402
from blockpunch.errors import DataError, ModelError, TrainingError  # noqa: E402
from blockpunch.graph.onnx_import import from_onnx  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import onnx_layers  # noqa: E402
from blockpunch.pruning.dataset import load_training_set  # noqa: E402
from blockpunch.pruning.onnx_recover import write_onnx  # noqa: E402
from blockpunch.pruning.train import train_graph, train_onnx, whole_rate  # noqa: E402
from blockpunch.runtime.session import Session  # noqa: E402
from small_network import write_network  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def image(path, rng, tone, size=16):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(rng.normal(tone, 30, (size, size, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def class_folders(folder, rng, classes=5, count=6):
    for label in range(classes):
        for index in range(count):
            image(folder / f"class{label}" / f"{index}.png", rng, 40 + 40 * label)
    return folder


def yolo(folder, rng, boxes="0 0.5 0.5 0.2 0.2\n"):
    for index in range(8):
        image(folder / "images" / f"{index}.png", rng, 100)
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{index}.txt").write_text(boxes)
    return folder


def cifar(folder, rng):
    folder.mkdir()
    for index in range(1, 6):
        batch = {b"data": rng.integers(0, 256, (10, 3072), np.uint8), b"labels": list(range(10))}
        (folder / f"data_batch_{index}").write_bytes(pickle.dumps(batch))
    return folder


def test_data_sets_are_recognised_by_their_layout(tmp_path, rng):
    found = load_training_set(class_folders(tmp_path / "c" / "train", rng).parent, 14)
    assert found.pixels.shape == (30, 16, 16, 3) and found.classes == 5
    assert found.labels.tolist() == sorted(list(range(5)) * 6)
    assert found.pixels[-1].mean() > found.pixels[0].mean() + 50
    found = load_training_set(yolo(tmp_path / "y", rng), 14)
    assert found.labels is None and found.kind == "8 images with 8 boxes"
    found = load_training_set(cifar(tmp_path / "cifar", rng), 32, limit=20)
    assert found.pixels.shape == (20, 32, 32, 3) and found.classes == 10 and found.pad == 4
    image(tmp_path / "photos" / "a.png", rng, 100)
    assert load_training_set(tmp_path / "photos", 14).kind == "1 images without labels"


def test_bad_data_sets(tmp_path, rng):
    with pytest.raises(DataError, match="no such folder"):
        load_training_set(tmp_path / "none", 14)
    with pytest.raises(DataError, match="32 pixels, the network takes 14"):
        load_training_set(cifar(tmp_path / "cifar", rng), 14)
    with pytest.raises(DataError, match="outside the photo"):
        load_training_set(yolo(tmp_path / "y", rng, "0 1.5 0.5 0.1 0.1\n"), 14)
    with pytest.raises(DataError, match="label file with boxes"):
        load_training_set(yolo(tmp_path / "z", rng, ""), 14)


def test_batches_of_an_epoch_can_be_fewer_than_the_images_fill(tmp_path, rng):
    data = load_training_set(class_folders(tmp_path, rng), 14)
    loader = data.batches(Preprocess.named("imagenet", 14), 14, 4, steps=2)
    batches = [*loader, *loader]
    assert len(loader) == 2 and len(batches) == 4
    assert all(images.shape == (4, 3, 14, 14) and len(labels) == 4 for images, labels in batches)


def trained(tmp_path, data, method, name="out.onnx", minutes=0.05, rate=2, **settings):
    network = tmp_path / "net.onnx"
    if not network.exists():
        write_network(network, size=14)
    plan = Plan.uniform(onnx_layers(network), "block-punched:4x4", rate, only=["second", "last"])
    found = load_training_set(data, 14)
    report, result = train_onnx(network, plan, found, tmp_path / name, preprocess=Preprocess.named("imagenet", 14),
                                method=method, minutes=minutes, batch=8, **settings)
    return plan, report, result


def scores(path, folder):
    found = load_training_set(folder, 14)
    x = Preprocess.named("imagenet", 14).normalise(found.pixels[:, 1:15, 1:15])
    session = ort.InferenceSession(str(path))
    return np.concatenate([session.run(None, {"x": x[i:i + 1]})[0] for i in range(len(x))]), found.labels


@pytest.mark.parametrize("method", ["reweighted", "gradual", "one-shot"])
def test_a_network_learns_class_folders_while_it_is_pruned(tmp_path, rng, method):
    folder = class_folders(tmp_path / "data", rng)
    plan, report, result = trained(tmp_path, folder, method)
    assert result.steps >= 2 and report.rate == pytest.approx(whole_rate(plan), rel=0.06)
    file = onnx.load(tmp_path / "out.onnx")
    kept = {tensor.name: np.count_nonzero(numpy_helper.to_array(tensor)) for tensor in file.graph.initializer}
    assert [kept[name] for name in ("w1", "w2", "w3")] == [layer.kept for layer in report.layers], "counted in the file"
    before, labels = scores(tmp_path / "net.onnx", folder)
    after, _ = scores(tmp_path / "out.onnx", folder)
    cost = [float(torch.nn.functional.cross_entropy(torch.from_numpy(s), torch.from_numpy(labels)))
            for s in (before, after)]
    assert cost[1] < cost[0]


def test_torch_the_file_and_the_artifact_agree(tmp_path, rng):
    network = write_network(tmp_path / "net.onnx", size=14)
    graph = from_onnx(network)
    plan = Plan.uniform(onnx_layers(network), "block-punched:4x4", 2, only=["second", "last"])
    data = load_training_set(class_folders(tmp_path / "data", rng), 14)
    module, report, _ = train_graph(graph, plan, data, preprocess=Preprocess.named("imagenet", 14), minutes=0.02)
    write_onnx(network, graph, module.constants(), tmp_path / "out.onnx")
    x = rng.standard_normal((1, 3, 14, 14)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    from_file = ort.InferenceSession(str(tmp_path / "out.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(from_file, expected, rtol=1e-4, atol=1e-5)
    with Session(compile_model(tmp_path / "out.onnx")) as session:
        np.testing.assert_allclose(session.run(x), expected, rtol=1e-4, atol=1e-5)
    for layer in report.layers:
        mask = module.get_submodule(layer.name).weight.detach().numpy() != 0
        plan.layers[layer.name].scheme.check(mask)
        assert layer.kept == mask.sum()


def test_without_fitting_labels_the_dense_network_is_the_aim(tmp_path, rng, caplog):
    folder = class_folders(tmp_path / "data", rng, classes=3, count=8)
    trained(tmp_path, folder, "gradual", minutes=0.03)
    assert "no score for each of the 3 classes" in caplog.text
    _, report, _ = trained(tmp_path, yolo(tmp_path / "y", rng), "reweighted", minutes=0.03)
    dense, _ = scores(tmp_path / "net.onnx", folder)
    pruned, _ = scores(tmp_path / "out.onnx", folder)
    assert report.rate > 1.5 and np.abs(pruned - dense).mean() < np.abs(dense).mean()


def test_an_interrupted_training_goes_on_with_its_first_schedule(tmp_path, rng):
    folder, path = class_folders(tmp_path / "data", rng), tmp_path / "net.checkpoint"

    def interrupt(status):
        if status.step > len_of_epoch[0] and status.step % 5 == 4:
            raise KeyboardInterrupt
        len_of_epoch[0] = 3
    len_of_epoch = [10**9]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, folder, "reweighted", checkpoint=path, progress=interrupt)
    seen = []
    _, _, result = trained(tmp_path, folder, "reweighted", minutes=99, checkpoint=path, progress=seen.append)
    assert result.resumed and seen[0].step <= 9 and result.steps == seen[0].steps < 10_000


def test_on_the_command_line(tmp_path, rng):
    runner, folder = CliRunner(), class_folders(tmp_path / "data", rng)
    network, output = write_network(tmp_path / "net.onnx", size=14), tmp_path / "out.onnx"
    command = ["prune", str(network), "--only", "second", "--block", "4x4", "--rate", "2", "--minutes", "0.02", "-o",
               str(output), "--train"]
    done = runner.invoke(app, [*command, str(folder), "--json", "-"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["layers"]["second"]["rate"] == pytest.approx(2, rel=0.05) and output.exists()
    assert not output.with_name("out.onnx.checkpoint").exists()
    for wrong, words in (([str(tmp_path / "none")], "no such folder"), ([str(folder), "--method", "magic"], "unknown"),
                         ([str(folder), "--distill", str(folder)], "exclude each other")):
        done = runner.invoke(app, [*command, *wrong])
        assert done.exit_code == 1 and words in done.stderr


def test_faults(tmp_path, rng):
    folder = class_folders(tmp_path / "data", rng)
    with pytest.raises(TrainingError, match="unknown method 'magic'"):
        trained(tmp_path, folder, "magic")
    write_network(tmp_path / "odd.onnx", size=14)
    plan = Plan.uniform(onnx_layers(tmp_path / "odd.onnx"), "filter", 2)
    with pytest.raises(ModelError, match="one square image"):
        train_onnx(tmp_path / "odd.onnx", plan, load_training_set(folder, 14), tmp_path / "o.onnx",
                   preprocess=Preprocess.named("imagenet", 14), shape={"x": (1, 3, 14, 15)})
