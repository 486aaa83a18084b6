"""The main job on a small network: its files, its facts, and that it goes on where it was interrupted."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from blockpunch.cli.app import app
from blockpunch.data import Preprocess
from blockpunch.errors import BlockpunchError, DataError, OutputError, PlanError
from blockpunch.mapping import Goal
from blockpunch.measure.quality import Check, compare
from blockpunch.optimize import Job, ModuleSource, OnnxSource, Photos, Settings, rerender, training_pixels
from blockpunch.optimize.recovery import Recovery
from blockpunch.optimize.workfolder import WorkFolder, fingerprint
from blockpunch.plan import Plan
from blockpunch.pruning import recover
from blockpunch.pruning.recover import distill
from blockpunch.report import render
from blockpunch.runtime.session import Session
from blockpunch.schemes import Scheme
from blockpunch.target import Target
from mapping_cases import fill

QUICK = Settings(scheme="block-punched:8x4", rate=2.0, seconds=0.05)
SMALL = Preprocess(resize=14, crop=12)


@pytest.fixture
def lines():
    return []


def job(source, folder, lines, settings=QUICK, **options) -> Job:
    return Job(source, folder, settings, show=lambda event: lines.append(event.text), **options)


def photos(folder, count=8, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def zeros(path, name="w2") -> float:
    weight = next(numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name == name)
    return float((weight == 0).mean())


def test_one_shot(small_onnx, tmp_path, lines):
    facts = job(OnnxSource(small_onnx), tmp_path / "out", lines).run()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"plan.json", "pruned.onnx", "dense.bp", "net.bp", "report.html", "report.json", "state.json"} <= names
    assert zeros(tmp_path / "out" / "pruned.onnx") == 0.5
    assert facts.weights - facts.kept_weights == 16 * 8 * 9 // 2
    assert {e.role for e in facts.engines} == {"peer", "dense", "pruned"} and facts.peer_gain and facts.own_gain
    assert all(e.max_rel_error is not None and e.max_rel_error < 1e-4 for e in facts.engines)
    second = next(layer for layer in facts.layers if layer.name == "second")
    assert second.kept_macs * 2 == second.macs and second.ms and second.dense_ms and second.rate == 2
    assert facts.comparison is None and "Pruned in one shot" in (tmp_path / "out" / "report.html").read_text()


def test_a_second_run_keeps_what_is_done(small_onnx, tmp_path, lines):
    first = job(OnnxSource(small_onnx), tmp_path / "out", lines).run()
    lines.clear()
    again = job(OnnxSource(small_onnx), tmp_path / "out", lines).run()
    assert [line for line in lines if line.endswith("started")] == []
    assert again.engines == first.engines and again.layers == first.layers


def test_what_changed_is_done_again(small_onnx, tmp_path, lines):
    job(OnnxSource(small_onnx), tmp_path / "out", lines).run()
    lines.clear()
    job(OnnxSource(small_onnx), tmp_path / "out", lines, Settings(rate=4.0, seconds=0.05)).run()
    assert "prune: started" in lines and "compile: started" in lines and "compile dense: kept from before" in lines
    (tmp_path / "out" / "net.bp").write_bytes(b"short")
    lines.clear()
    job(OnnxSource(small_onnx), tmp_path / "out", lines, Settings(rate=4.0, seconds=0.05)).run()
    assert "prune: kept from before" in lines and "compile: started" in lines


def test_labels_without_an_output_are_refused_before_the_work(small_onnx, tmp_path, lines):
    check = Check(np.zeros((2, 12, 12, 3), np.uint8), SMALL, np.array([0, 10**6]))
    with pytest.raises(DataError, match="labels go from 0 to 1000000"):
        job(OnnxSource(small_onnx), tmp_path / "out", lines, check=check).run()
    assert lines == []


def test_distillation_of_another_length_keeps_the_one_shot_pruning(small_onnx, tmp_path, lines):
    pixels = training_pixels(photos(tmp_path / "photos"), 12)
    for minutes in (0.0, 0.01):
        lines.clear()
        settings = Settings(rate=2.0, seconds=0.05, minutes=minutes, batch=4)
        job(OnnxSource(small_onnx), tmp_path / "out", lines, settings, photos=Photos(pixels, SMALL, 12)).run()
    assert {"prune: kept from before", "recover: started"} <= set(lines)


def test_distillation_that_does_harm_is_undone(small_onnx, tmp_path, lines, monkeypatch):
    def harm(pruner, *args, **options):  # whatever the steps did, however many there was time for
        result = distill(pruner, *args, **options)
        with torch.no_grad():
            for weights in pruner.model.parameters():
                weights.mul_(3)
        return result

    monkeypatch.setattr(recover, "distill", harm)
    pixels, written = training_pixels(photos(tmp_path / "photos", 12), 12), []
    for name, minutes in (("one", 0.0), ("harmed", 0.01)):
        settings = Settings(rate=2.0, seconds=0.05, minutes=minutes, batch=4)
        facts = job(OnnxSource(small_onnx), tmp_path / name, lines, settings, photos=Photos(pixels, SMALL, 12)).run()
        written.append(onnx.load(tmp_path / name / "pruned.onnx").graph.initializer)
    assert "were undone" in facts.recovery
    assert all(a == b for a, b in zip(*written, strict=True))


def test_interrupted_job_goes_on(small_onnx, tmp_path, lines, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    stopped = job(OnnxSource(small_onnx), tmp_path / "out", lines)
    monkeypatch.setattr(stopped, "_bench", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert not (tmp_path / "out" / "report.html").exists()
    lines.clear()
    job(OnnxSource(small_onnx), tmp_path / "out", lines).run()
    assert {"prune: kept from before", "compile: kept from before", "bench: started"} <= set(lines)


def test_ctrl_c_in_the_middle_of_training(small_onnx, tmp_path):
    photos(tmp_path / "photos")
    command = [sys.executable, "-m", "blockpunch", "optimize", str(small_onnx), "-o", str(tmp_path / "out"),
               "--rate", "2", "--photos", str(tmp_path / "photos"), "--minutes", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    assert any("recover: started" in line for line in process.stderr)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait(30) == 130 and "Traceback" not in error, error
    assert f"kept: finished stages in {tmp_path / 'out'};" in error
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "pruned.onnx" not in left and not any(name.endswith(".part") for name in left)


def test_distillation_prunes_by_photos_and_keeps_the_zeros(small_onnx, tmp_path, lines):
    pixels = training_pixels(photos(tmp_path / "photos"), 12)
    settings = Settings(rate=2.0, seconds=0.05, minutes=0.02, batch=4)
    recovered = job(OnnxSource(small_onnx), tmp_path / "out", lines, settings, photos=Photos(pixels, SMALL, 12)).run()
    one_shot = job(OnnxSource(small_onnx), tmp_path / "one", lines).run()
    assert recovered.kept_weights <= one_shot.kept_weights and "distilled" in recovered.recovery
    a, b = (next(numpy_helper.to_array(t) for t in onnx.load(tmp_path / where / "pruned.onnx").graph.initializer
                 if t.name == "w2") for where in ("out", "one"))
    assert np.count_nonzero(a) == np.count_nonzero(b) and not np.array_equal(a, b)
    Scheme("block-punched").check(a)


def test_a_torch_module(tmp_path, lines):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8),
                                 torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 1), torch.nn.ReLU6(),
                                 torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 4)).eval()
    source = ModuleSource(module, torch.zeros(1, 3, 12, 12), "module")
    facts = job(source, tmp_path / "out", lines).run()
    assert facts.weights - facts.kept_weights == 8 * 16 // 2
    x = torch.randn(1, 3, 12, 12)
    with Session(tmp_path / "out" / "dense.bp") as session:
        np.testing.assert_allclose(session.run(x.numpy()), module(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    onnx_session = onnxruntime.InferenceSession(str(tmp_path / "out" / "pruned.onnx"))
    with Session(tmp_path / "out" / "net.bp") as session:
        expected = onnx_session.run(None, {onnx_session.get_inputs()[0].name: x.numpy()})[0]
        np.testing.assert_allclose(session.run(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "out" / "pruned.safetensors").is_file()
    assert torch.equal(module[3].weight, source.module[3].weight) and (module[3].weight != 0).all(), "left as it was"


def test_comparison_counts_right_answers(small_onnx, small_bp, tmp_path):
    paths = photos(tmp_path / "photos", 10)
    reference = onnxruntime.InferenceSession(str(small_onnx))
    answers = np.array([reference.run(None, {"x": SMALL(p)[None]})[0].argmax() for p in paths])
    labels = answers.copy()
    labels[:3] = (labels[:3] + 1) % 5
    with Session(small_bp) as session:
        result = compare(session, session, Check(paths, SMALL, labels))
        assert result.dense == result.pruned == 0.7 and result.agreement == 1 and result.only_dense_right == 0
        shifted = compare(session, session, Check(paths, SMALL, answers - 1, offset=1))
        assert shifted.dense == 1
        unlabelled = compare(session, session, Check(paths, SMALL))
        assert unlabelled.dense is None and unlabelled.agreement == 1
        with pytest.raises(DataError, match="5 outputs"):
            compare(session, session, Check(paths, SMALL, labels + 5))
        with pytest.raises(DataError, match="the network takes"):
            compare(session, session, Check(paths, Preprocess(resize=20, crop=16), labels))
        with pytest.raises(DataError, match="no images"):
            compare(session, session, Check([], SMALL))


def test_command_line_with_labels_and_photos(small_onnx, tmp_path):
    paths = photos(tmp_path / "check", 6)
    (tmp_path / "check" / "labels.csv").write_text("file,label\n" + "".join(f"{p.name},{i % 5}\n"
                                                                             for i, p in enumerate(paths)))
    photos(tmp_path / "train", 6, seed=1)
    arguments = ["optimize", small_onnx, "-o", tmp_path / "out", "--rate", 2, "--check", tmp_path / "check",
                 "--photos", tmp_path / "train", "--minutes", "0.02", "--seconds", "0.05", "-e", "onnxruntime"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    assert "top-1, dense" in result.stdout and "best dense engine: ONNX Runtime" in result.stdout
    page = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    assert CliRunner().invoke(app, ["report", str(tmp_path / "out")]).exit_code == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == page


def test_prune_on_photos_without_training(small_onnx, tmp_path):
    photos(tmp_path / "photos", 8)
    call = ["prune", str(small_onnx), "--rate", "2", "--one-shot", str(tmp_path / "photos")]
    result = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "p.onnx"), "--save-plan", str(tmp_path / "plan.json"),
                                      "--json", "-"])
    assert result.exit_code == 0, result.stderr
    counts, plan = json.loads(result.stdout)["layers"], Plan.load(tmp_path / "plan.json")
    pruned = [counts[name] for name in plan.pruned()]
    assert sum(c["weights"] for c in pruned) / sum(c["kept"] for c in pruned) == pytest.approx(2, rel=0.1)
    assert (tmp_path / "p.onnx.errors.json").is_file()
    for name, tensor in ((t.name, numpy_helper.to_array(t)) for t in onnx.load(tmp_path / "p.onnx").graph.initializer):
        assert np.isfinite(tensor).all(), name
    both = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "q.onnx"), "--distill", str(tmp_path / "photos")])
    assert both.exit_code != 0 and "exclude each other" in both.stderr and not (tmp_path / "q.onnx").exists()


def test_refusals(small_onnx, tmp_path, lines):
    source = OnnxSource(small_onnx)
    for settings in (Settings(rate=2.0, minutes=1.0), Settings(goal=Goal(max_drop=1.0))):
        with pytest.raises(DataError, match="photos"):
            job(source, tmp_path / "a", lines, settings).run()
    for settings in (Settings(rate=2.0, goal=Goal(speedup=2.0)), Settings(only=("second",))):
        with pytest.raises(PlanError):
            job(source, tmp_path / "a", lines, settings).run()
    with pytest.raises(PlanError, match="nothing can be measured for"):
        job(source, tmp_path / "a", lines, Settings(target="cortex-a76")).run()
    with pytest.raises(PlanError, match="another model"):
        job(source, tmp_path / "b", lines, Settings(plan=Plan({}))).run()
    with pytest.raises(DataError, match="no finished job"):
        rerender(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        job(source, tmp_path / "file", lines).run()


def test_work_folder_survives_nonsense(tmp_path, lines):
    (tmp_path / "state.json").write_text("{ no json")
    calls = []

    def action():
        calls.append(1)
        (tmp_path / "a").write_text("x")
        return {"n": [1]}

    work = WorkFolder(tmp_path, lines.append)
    work.stage("s", "k", ["a"], action)["n"].append(2)
    assert WorkFolder(tmp_path, lines.append).stage("s", "k", ["a"], action) == {"n": [1]} and len(calls) == 1
    (tmp_path / "a").unlink()
    WorkFolder(tmp_path, lines.append).stage("s", "k", ["a"], action)
    assert len(calls) == 2 and json.loads((tmp_path / "state.json").read_text())["stages"]["s"]["files"] == {"a": 1}

    def fails():
        raise DataError("no")

    with pytest.raises(BlockpunchError):
        work.stage("t", "k", [], fails)
    assert not work.finished("t", "k")


def test_fingerprints_follow_content(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint("1")
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1}) != fingerprint({"x": 1})


def test_the_plan_is_mapped_by_default(small_onnx, tmp_path, lines, monkeypatch):
    """Rules without photos; with photos errors decide, or trials for an accuracy. A second run keeps everything."""
    from blockpunch.graph.passes import optimize
    from blockpunch.mapping import LatencyTable, Network

    table = tmp_path / "table.jsonl"
    source = OnnxSource(small_onnx)
    network = Network(optimize(source.graph), Target.host())
    fill(LatencyTable(table, network.target), network)
    pixels = Photos(training_pixels(photos(tmp_path / "photos", 20), 12), SMALL, 12)
    for name, goal, images in (("rules", Goal(speedup=1.3), None), ("exact", Goal(speedup=1.3), pixels),
                               ("accuracy", Goal(max_drop=50.0), pixels)):
        settings = Settings(goal=goal, table=table, seconds=0.05)
        facts = job(source, tmp_path / name, lines, settings, photos=images).run()
        assert facts.mapping is not None and facts.mapping.method == ("rules" if images is None else "exact")
        assert facts.kept_weights < facts.weights and bool(facts.mapping.frontier) == (images is not None)
        second = next(layer for layer in facts.layers if layer.name == "second")
        assert second.predicted_ms == pytest.approx(facts.mapping.layers["second"]) and second.pruned
        assert bool(facts.mapping.trials) == (name == "accuracy") and "Mapping" in render(facts)
        assert any("one-shot: layer" in line for line in lines) == (name == "exact")  # what a trial pruned is taken
        lines.clear()
        again = job(source, tmp_path / name, lines, settings, photos=images).run()
        assert again.mapping == facts.mapping and not any(line.endswith("started") for line in lines)
    assert "rules choose" not in "".join(lines) and (tmp_path / "rules" / "plan.json").is_file()
    Recovery(source, Plan.load(tmp_path / "accuracy" / "plan.json"), pixels, 0.0, 16, None, 0,
             lambda event: None).one_shot(tmp_path / "anew.safetensors")
    kept = [path.read_bytes() for path in (tmp_path / "anew.safetensors",
                                           tmp_path / "accuracy" / "one-shot.safetensors")]
    assert kept[0] == kept[1] and not list((tmp_path / "accuracy").glob("tried-*"))
