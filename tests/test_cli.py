"""The command line, end to end: what each verb does, and how each kind of bad input ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from blockpunch.cli.app import app
from small_network import write_network


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


def call(*arguments) -> Result:
    """Run the program inside this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Result(result.exit_code, result.stdout, result.stderr)


def spawn(*arguments, **options) -> Result:
    """Run the program as a user does."""
    done = subprocess.run([sys.executable, "-m", "blockpunch", *map(str, arguments)], capture_output=True, text=True,
                          timeout=100, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def refused(result: Result, *words: str) -> None:
    """One clear message on standard error, status 1, no traceback."""
    assert result.code == 1, result.out + result.err
    assert result.err.count("blockpunch: ") == 1, result.err
    assert "Traceback" not in result.err and "internal error" not in result.err
    for word in words:
        assert word in result.err, result.err


def reference(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]


# ------------------------------------------------------------------------------------------------ the way through

def test_prune_compile_run(small_onnx, tmp_path, rng):
    pruned, net = tmp_path / "p.onnx", tmp_path / "net.bp"
    result = call("prune", small_onnx, "--scheme", "block-punched", "--block", "8x4", "--rate", 2, "-o", pruned)
    assert result.code == 0, result.err
    assert "block-punched:8x4" in result.out and "first convolution" in result.out
    weight = next(numpy_helper.to_array(t) for t in onnx.load(pruned).graph.initializer if t.name == "w2")
    assert np.count_nonzero(weight) == weight.size // 2

    result = call("compile", pruned, "-o", net)
    assert result.code == 0 and "MMAC" in result.out, result.err
    x = rng.standard_normal((1, 3, 12, 12), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    result = call("run", net, "--input", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--threads", 2)
    assert result.code == 0, result.err
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), reference(pruned, x), rtol=1e-4, atol=1e-5)


def test_tables_line_up(small_onnx, tmp_path):
    lines = call("prune", small_onnx, "--rate", 2, "-o", tmp_path / "p.onnx").out.splitlines()
    header = next(line for line in lines if "layer" in line and "scheme" in line)
    rows = [line for line in lines if line.startswith((" first", " second", " last", " all"))]
    assert len(rows) == 4
    end = header.index("kept") + len("kept")
    assert all(row[end - 1].isdigit() and row[end] == " " for row in rows), "numbers end under their heading's end"


def test_plan_goes_to_a_file_and_back(small_onnx, tmp_path):
    plan = tmp_path / "plan.json"
    first = call("prune", small_onnx, "--rate", 2, "-o", tmp_path / "a.onnx", "--save-plan", plan, "--json", "-")
    again = call("prune", small_onnx, "--plan", plan, "-o", tmp_path / "b.onnx", "--json", "-")
    assert first.code == again.code == 0, first.err + again.err
    assert json.loads(first.out)["layers"] == json.loads(again.out)["layers"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_only_and_skip(small_onnx, tmp_path):
    result = call("prune", small_onnx, "--rate", 2, "--skip", "second", "-o", tmp_path / "a.onnx", "--json", "-")
    assert json.loads(result.out)["kept"] == json.loads(result.out)["weights"]
    result = call("prune", small_onnx, "--rate", 2, "--only", "last", "-o", tmp_path / "a.onnx", "--json", "-")
    layers = json.loads(result.out)["layers"]
    assert layers["last"]["rate"] == 2 and layers["second"]["rate"] == 1


def test_inspect(small_onnx, small_bp):
    data = json.loads(call("inspect", small_onnx, "--json", "-").out)
    assert [layer["name"] for layer in data["layers"]] == ["first", "second", "last"]
    assert data["layers"][1]["macs"] == 16 * 8 * 9 * 144 and data["inputs"] == {"x": [1, 3, 12, 12]}
    timed = json.loads(call("inspect", small_bp, "--time", "--json", "-").out)["layers"]
    assert abs(sum(layer["share"] for layer in timed) - 1) < 1e-6 and all(layer["ms"] >= 0 for layer in timed)
    assert {"first", "second", "last"} <= {layer["name"] for layer in timed}


def test_extract_gives_what_a_c_program_needs(small_bp, tmp_path):
    result = call("extract", small_bp, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"weights.bin", "blockpunch.h"} <= names and any(name.endswith(".so") for name in names)


def test_bench_writes_json_and_nothing_else(small_onnx):
    result = spawn("bench", small_onnx, "--engines", "blockpunch,onnxruntime", "--threads", 1, "--seconds", "0.1",
                   "--json", "-")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["threads"] == 1 and data["model"] == str(small_onnx)
    assert set(data["engines"]) == {"blockpunch", "onnxruntime"}
    for engine in data["engines"].values():
        assert {"median_ms", "min_ms", "max_rel_error", "runs", "version"} <= set(engine)
        assert 0 < engine["min_ms"] <= engine["median_ms"] and engine["runs"] >= 4
    assert data["engines"]["blockpunch"]["max_rel_error"] < 1e-4


def test_doctor(tmp_path):
    assert call("doctor", "--json", tmp_path / "d.json").code == 0
    data = json.loads((tmp_path / "d.json").read_text())
    assert data["vector_bits"] in (128, 256, 512) and data["peak_gmacs"] > 1 and data["engines"]["onnxruntime"]
    assert "FMA peak" in call("doctor").out


# ------------------------------------------------------------------------------------------------------ bad input

def test_not_a_model(tmp_path):
    text = tmp_path / "readme.onnx"
    text.write_text("this is no model")
    out = ("-o", tmp_path / "o.bp")
    for verb in (("inspect", text), ("compile", text, *out), ("prune", text, *out)):
        refused(call(*verb), str(text), "not an ONNX model")
    refused(call("inspect", tmp_path / "none.onnx"), "none.onnx")
    assert not (tmp_path / "o.bp").exists()


def test_truncated_model(small_onnx, tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(small_onnx.read_bytes()[:-700])
    refused(call("compile", cut, "-o", tmp_path / "o.bp"), "cut.onnx")


def test_unsupported_operators_are_listed_at_once(small_onnx, tmp_path):
    model = onnx.load(small_onnx)
    for node, op in ((model.graph.node[1], "Celu"), (model.graph.node[3], "GlobalLpPool")):
        node.op_type = op
    onnx.save(model, tmp_path / "odd.onnx")
    refused(call("compile", tmp_path / "odd.onnx", "-o", tmp_path / "o.bp"), "Celu", "act", "GlobalLpPool", "pool")


def test_dynamic_shape_asks_for_shape(tmp_path):
    path = write_network(tmp_path / "dynamic.onnx", batch="N")
    refused(call("compile", path, "-o", tmp_path / "o.bp"), "shape")
    assert call("compile", path, "-o", tmp_path / "o.bp", "--shape", "x=1,3,12,12").code == 0
    refused(call("compile", path, "-o", tmp_path / "o.bp", "--shape", "x=1,a"), "--shape", "x=1,a")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(small_onnx, tmp_path, value):
    model = onnx.load(small_onnx)
    tensor = model.graph.initializer[2]
    weight = numpy_helper.to_array(tensor).copy()
    weight[3, 2, 1, 1] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    refused(call("prune", tmp_path / "nan.onnx", "-o", tmp_path / "o.onnx"), "w2", "NaN or infinite")
    refused(call("compile", tmp_path / "nan.onnx", "-o", tmp_path / "o.bp"))


@pytest.mark.parametrize(("options", "words"), [
    (("--only", "third"), ("third", "no layer matches")), (("--skip", "layer9.*"), ("layer9.*",)),
    (("--rate", "0.5"), ("0.5",)), (("--rate", "nan"), ("nan",)), (("--block", "0x4"), ("block size",)),
    (("--block", "wide"), ("wide",)), (("--scheme", "blockpunched"), ("did you mean 'block-punched'",)),
    (("--scheme", "filter", "--block", "8x4"), ("filter",))])
def test_impossible_plans(small_onnx, tmp_path, options, words):
    refused(call("prune", small_onnx, "-o", tmp_path / "o.onnx", *options), *words)
    assert not (tmp_path / "o.onnx").exists()


def test_a_plan_that_is_not_one(small_onnx, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text('{"format": "blockpunch-plan", "version": 1, "layers": {"x": {"rate": 2}}}')
    refused(call("prune", small_onnx, "--plan", plan, "-o", tmp_path / "o.onnx"), "plan.json", "scheme")


@pytest.mark.parametrize(("array", "words"), [
    (np.zeros((1, 3, 12, 13), np.float32), ("shape", "(1, 3, 12, 13)")),
    (np.zeros((1, 3, 12, 12), np.float64), ("float64", "float32"))])
def test_wrong_input_arrays(small_bp, tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    refused(call("run", small_bp, "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npy"), *words)
    assert not (tmp_path / "y.npy").exists()


def test_wrong_count_and_names_of_inputs(small_bp, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 12, 12), np.float32))
    x = tmp_path / "x.npy"
    refused(call("run", small_bp, "-i", x, "-i", x, "-o", tmp_path / "y.npy"), "2 inputs given, the network has 1")
    refused(call("run", small_bp, "-i", f"wrong={x}", "-o", tmp_path / "y.npy"), "wrong")
    refused(call("run", small_bp, "-i", tmp_path / "none.npy", "-o", tmp_path / "y.npy"), "none.npy")
    (tmp_path / "text.npy").write_text("no array")
    refused(call("run", small_bp, "-i", tmp_path / "text.npy", "-o", tmp_path / "y.npy"), "text.npy")


def test_damaged_artifacts(small_bp, tmp_path):
    whole = small_bp.read_bytes()
    altered = bytearray(whole)
    at = whole.index(b"PK\x01\x02") - 600  # in the last member before the directory
    altered[at] ^= 1
    damaged = {"cut.bp": whole[:len(whole) // 2], "altered.bp": bytes(altered), "text.bp": b"no artifact"}
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        refused(call("inspect", tmp_path / name), name)
        refused(call("run", tmp_path / name, "-i", "x.npy", "-o", tmp_path / "y.npy"), name)


def test_artifact_for_another_cpu(small_onnx, tmp_path):
    result = call("compile", small_onnx, "-o", tmp_path / "arm.bp", "--target", "cortex-a76")
    assert result.code == 0, result.err
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 12, 12), np.float32))
    refused(call("run", tmp_path / "arm.bp", "-i", tmp_path / "x.npy", "-o", tmp_path / "y.npy"), "aarch64")
    refused(call("compile", small_onnx, "-o", tmp_path / "o.bp", "--target", "pentium"), "pentium", "x86-64-v3")


def test_no_compiler(small_onnx, tmp_path):
    environment = {**os.environ, "CC": "/nowhere/cc"}
    refused(spawn("compile", small_onnx, "-o", tmp_path / "o.bp", env=environment), "/nowhere/cc")
    assert not (tmp_path / "o.bp").exists()


def test_output_that_cannot_be_written(small_onnx, tmp_path):
    refused(call("compile", small_onnx, "-o", tmp_path / "none" / "o.bp"), "folder does not exist")
    refused(call("prune", small_onnx, "-o", tmp_path), "is a folder")
    (tmp_path / "file").touch()
    refused(call("optimize", small_onnx, "-o", tmp_path / "file"), "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full(small_onnx):
    result = spawn("bench", small_onnx, "-e", "onnxruntime", "--seconds", "0.05", "--json", "/dev/full")
    assert result.code == 1 and "Traceback" not in result.err


def test_bad_usage_and_engines(small_onnx, small_bp, tmp_path):
    assert call("compile", small_onnx).code == 2 and call("prun").code == 2
    refused(call("bench", small_onnx, "-e", "tensorflow"), "tensorflow", "onnxruntime")
    refused(call("bench", small_bp, "-e", "onnxruntime"), "onnxruntime reads .onnx files")
    refused(call("bench", tmp_path / "none.onnx"), "no such file")
    refused(call("report", tmp_path), "no finished job")
    refused(call("optimize", small_onnx, "-o", tmp_path / "d", "--photos", tmp_path / "none"), "no such folder")


def test_missing_package_is_named(small_onnx):
    code = ("import sys; sys.modules['openvino'] = None; import importlib.metadata as m; known = m.version\n"
            "def version(name):\n"
            "    if name == 'openvino': raise m.PackageNotFoundError(name)\n"
            "    return known(name)\n"
            "m.version = version; sys.argv = ['blockpunch', 'bench', sys.argv[1], '-e', 'openvino']\n"
            "from blockpunch.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, str(small_onnx)], capture_output=True, text=True)
    refused(Result(done.returncode, done.stdout, done.stderr), "openvino", "pip install 'blockpunch[openvino]'")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_command_line_without_its_extra(missing):
    code = f"import sys; sys.modules['{missing}'] = None; from blockpunch.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert missing in done.stderr and "pip install 'blockpunch[cli]'" in done.stderr


def test_running_verbs_need_neither_onnx_nor_torch(small_bp, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 12, 12), np.float32))
    code = ("import sys\n"
            "for name in ('onnx', 'torch', 'jinja2', 'matplotlib', 'PIL', 'onnxruntime'): sys.modules[name] = None\n"
            "from blockpunch.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "run", str(small_bp), "-i", str(tmp_path / "x.npy"), "-o",
                           str(tmp_path / "y.npy")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "y.npy").exists()


def test_interrupted_work_leaves_no_half_file(small_onnx, tmp_path):
    """Ctrl-C in the middle of a measurement: status 130, one line, and nothing but the input in the folder."""
    command = [sys.executable, "-m", "blockpunch", "bench", str(small_onnx), "-e", "onnxruntime", "--seconds", "60",
               "--json", str(tmp_path / "b.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "measuring" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait(20) == 130 and "interrupted" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_debug_shows_the_traceback(tmp_path):
    result = spawn("--debug", "inspect", tmp_path / "none.onnx")
    assert result.code == 1 and "Traceback" in result.err
